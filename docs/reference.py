"""Writes the tables of the reference pages from the types: `python -m docs.reference [--check]`.

A page says in its own words what it is about; between the marks of a table stands what the types say.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.import_graph import ROOT
from docs.marked import rewritten
from nash.recipes.recipe import (
    MOST_COUNT,
    MOST_RATE,
    MOST_SEED,
    DataRecipe,
    DistillationRecipe,
    FinetuneRecipe,
    ModelShape,
    OptimizationRecipe,
    PruneRecipe,
    PruningRecipe,
    QuantizationRecipe,
    WorkloadRecipe,
)
from nash.recipes.sweep import MethodRecipe, PointRecipe, SweepRecipe
from server.engine.interface.config import SETTINGS, EngineConfig
from server.engine.interface.parameters import DECLARATIONS, LARGEST_COUNT
from server.frontend.metrics import PATHS, Metrics, ModelDescription, VariantMetrics
from server.frontend.requests.parameters import RequestParameters, TaskParameters
from server.settings import ENVIRONMENT_PREFIX, STORE_VARIABLE, Settings

# Bounds that only keep libraries from counting too far are not shown.
_NO_BOUNDS = (MOST_COUNT, MOST_RATE, MOST_SEED, LARGEST_COUNT)
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path", dict: "table"}


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([_row(*head), "|" + "---|" * len(head), *(_row(*row) for row in rows), ""])


def _code(value: Any) -> str:
    """A value as TOML and JSON write it."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str | Path) else f"`{value}`"


def _kind(annotation: Any, bounds: str = "") -> str:
    """What values a type has, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(_code(each) for each in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_kind(each, bounds) for each in arguments if each is not NoneType)
    if origin is list:
        return f"list of {_kind(arguments[0], bounds)}"
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _kind(arguments[0], _bounds(_flat(annotation.__metadata__)) or bounds)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}]"
    name = _NAMES.get(origin or annotation, "value")
    return f"{name} {bounds}" if bounds and name in ("whole number", "number") else name


def _flat(metadata: Iterable[Any]) -> list[Any]:
    """Of a field's metadata, also what stands in a nested Field()."""
    return [each for one in metadata for each in (one.metadata if isinstance(one, FieldInfo) else [one])]


def _bounds(metadata: Iterable[Any]) -> str:
    words = []
    for each in metadata:
        match each:
            case Ge(ge=least):
                words.append(f"from {least}")
            case Gt(gt=least):
                words.append(f"above {least}")
            case Le(le=most) if most not in _NO_BOUNDS:
                words.append(f"to {most}")
            case Lt(lt=most):
                words.append(f"below {most if most != 2**64 else '2^64'}")
    return " ".join(words)


def _values(field: FieldInfo) -> str:
    return _kind(field.annotation, _bounds(_flat(field.metadata)))


def recipe_table(kind: type[BaseModel], leave_out: Iterable[str] = ()) -> str:
    """The keys of a recipe's table, but those that are tables themselves."""
    rows = []
    for name, field in kind.model_fields.items():
        if name in leave_out or _is_section(field):
            continue
        default = "required" if field.is_required() else "" if field.default is None else _code(field.default)
        rows.append((f"`{name}`", _values(field), default, field.description or ""))
    return _table(("key", "values", "default", "what it does"), rows)


def _is_section(field: FieldInfo) -> bool:
    kinds = [field.annotation, *get_args(field.annotation)]
    sections = [each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)]
    return bool(sections) and get_origin(field.annotation) is not list


def parameters_table(kind: type[BaseModel], without: Iterable[str] = ()) -> str:
    """The fields of `parameters`."""
    rows = []
    for name, field in kind.model_fields.items():
        if name in without:
            continue
        values = "nothing but null, false, 0" if field.annotation is Any else _values(field)
        declared = DECLARATIONS.get(name)
        key = "" if declared is None or declared.key is None else f"`{declared.key}`"
        rows.append((f"`{name}`", values, key, field.description or ""))
    return _table(("parameter", "values", "default from", "what it does"), rows)


def model_keys_table() -> str:
    """What stands behind a model's name."""
    defaults = {each.name: each.default for each in dataclasses.fields(EngineConfig)}
    rows = [
        (f"`{key}`", "`auto`" if key == "dtype" else "" if defaults[key] is None else f"`{defaults[key]}`", about)
        for key, about in SETTINGS.items()
    ]
    return _table(("key", "default", "values"), rows)


def settings_table() -> str:
    """The flags and variables of the server."""
    rows = []
    for each in dataclasses.fields(Settings):
        if not each.metadata:
            continue
        variable = STORE_VARIABLE if each.name == "store" else ENVIRONMENT_PREFIX + each.name.upper()
        flag = "--" + each.name.replace("_", "-")
        default = "" if each.default is None or each.default is False else f"`{each.default}`"
        again = "yes" if each.metadata["live"] else ""
        rows.append((f"`{flag}`", f"`{variable}`", default, again, each.metadata["help"]))
    return _table(("flag", "variable", "default", "live", "what it does"), rows)


def metrics_table() -> str:
    """What the server tells Prometheus, with the values of the labels that it adds to `model` and `variant`."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    served = VariantMetrics(metrics, "m", "v")
    served.describe(
        ModelDescription(
            version="1",
            digest="d",
            parent="p",
            decoder_layers=1,
            encoder_sparsity=0.0,
            dtype="float32",
            baseline=True,
            engine="torch",
        )
    )
    for path in PATHS:
        metrics.graph_steps.labels("m", "v", path)
    families = [family for family in registry.collect() if family.name.startswith("nash_")]
    rows = []
    for family in sorted(families, key=lambda family: family.name):
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        values: dict[str, list[str]] = {}
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label not in ("model", "variant", "le") and value not in values.setdefault(label, []):
                    values[label].append(value)
        told = (f"`{label}`" if suffix == "_info" else f"`{label}`: {', '.join(of)}" for label, of in values.items())
        rows.append(
            (
                f"`{family.name}{suffix}`",
                "gauge" if suffix == "_info" else family.type,
                ", ".join(told),
                family.documentation,
            )
        )
    return _table(("metric", "type", "more labels", "what it counts"), rows)


# By page, the tables between its marks.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/recipes.md": {
        "prune": partial(recipe_table, PruneRecipe),
        "finetune": partial(recipe_table, FinetuneRecipe),
        "data": partial(recipe_table, DataRecipe),
        "pruning": partial(recipe_table, PruningRecipe),
        "training": partial(recipe_table, OptimizationRecipe),
        "distillation": partial(recipe_table, DistillationRecipe),
        "workload": partial(recipe_table, WorkloadRecipe),
        "quantization": partial(recipe_table, QuantizationRecipe),
        "shape": partial(recipe_table, ModelShape),
    },
    "docs/sweeps.md": {
        "sweep": partial(recipe_table, SweepRecipe),
        "method": partial(recipe_table, MethodRecipe),
        "point": partial(recipe_table, PointRecipe),
    },
    "docs/serving.md": {"model-keys": model_keys_table, "settings": settings_table},
    "docs/operations.md": {"metrics": metrics_table},
    "docs/parameters.md": {
        "parameters": partial(parameters_table, RequestParameters),
        "task": partial(parameters_table, TaskParameters, RequestParameters.model_fields),
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the pages, or say which of them do not say what the types say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    check: bool = parser.parse_args(arguments).check
    stale = []
    for name, tables in PAGES.items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        wanted = rewritten(text, tables)
        if wanted != text:
            stale.append(name)
            if not check:
                page.write_text(wanted, encoding="utf-8")
    for name in stale if check else ():
        print(f"{name} does not say what the types say: run python -m docs.reference")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
