"""From what `--model` asks for to a verified directory and the names that the variant goes by."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_store.errors import InvalidRequestError
from model_store.quality import QualityRecord
from model_store.ref import Ref, looks_like_path
from model_store.source import TOKENIZER, WEIGHTS
from model_store.spec import ModelSpec
from model_store.store import Store
from server.engine.capabilities import AUTO, check_calibrated, engine_name, why_not
from server.engine.dtype_choice import with_dtype
from server.engine.errors import LoadError
from server.errors import SettingsError
from server.settings import ModelRequest

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """One model to load. `model` and `variant` are its labels everywhere, `ref` is what callers name it by."""

    ref: str
    model: str
    variant: str
    version: int | None  # None for a model that is not in the store
    digest: str | None
    parent: str | None  # digest of the version that it was made from
    parameters: int | None  # None for a model that is not in the store
    directory: Path
    spec: ModelSpec
    request: ModelRequest  # as it will be loaded: its dtype is never "auto", its lengths are those that the model has
    dtype_why: str  # why it is this dtype
    engine: str  # what will run it: `native-SET` or `torch`


def resolve_models(requests: tuple[ModelRequest, ...], store: Store) -> tuple[ResolvedModel, ...]:
    """Find and verify every model that was asked for, in that order.

    Raises:
        ModelStoreError: a REF that is not in the store, damaged files, an architecture that is not supported.
        SettingsError: two of them would have the same name, or this machine has not what one of them asks for.
    """
    resolved: dict[str, ResolvedModel] = {}
    for request in requests:
        model = _from_path(request) if looks_like_path(request.ref) else _from_store(request, store)
        if model.ref in resolved:
            raise SettingsError(f"{request.ref} and {resolved[model.ref].request.ref} are both {model.ref}: give one")
        resolved[model.ref] = model
        config = model.request.engine
        _logger.info("%s runs in %s on %s (%s)", model.ref, config.dtype, model.engine, model.dtype_why)
    return tuple(resolved.values())


def _from_store(request: ModelRequest, store: Store) -> ResolvedModel:
    ref = Ref.parse(request.ref)
    version = store.resolve(ref)
    # The alias may move at any time: from here on it is the version that counts.
    directory = store.checkout(Ref(name=version.name, version=version.version))
    variant = ref.variant if ref.alias is not None else None
    spec = ModelSpec.from_config(_read_config(directory))
    # A damaged record is in nobody's way who names a dtype.
    records = store.quality(version.ref) if request.engine.dtype == AUTO else ()
    request, why, engine = _settled(request, spec, directory, records)
    return ResolvedModel(
        ref=f"{ref.name}@{variant}" if variant else version.ref,
        model=ref.name,
        variant=variant or f"v{version.version}",
        version=version.version,
        digest=version.digest,
        parent=version.manifest.lineage.parent,
        parameters=version.manifest.spec.parameters,
        directory=directory,
        spec=spec,
        request=request,
        dtype_why=why,
        engine=engine,
    )


def _from_path(request: ModelRequest) -> ResolvedModel:
    directory = Path(request.ref).resolve()
    if not directory.is_dir():
        raise InvalidRequestError(
            f"{request.ref} is no folder: give the folder of a model, "
            "or NAME, NAME@ALIAS or NAME:VERSION of one in the store"
        )
    spec = ModelSpec.from_config(_read_config(directory))
    for file in (WEIGHTS, TOKENIZER):  # the worker would miss them too, seconds later
        if not (directory / file).is_file():
            raise InvalidRequestError(f"{directory} has no {file}: give the folder of a Hugging Face model")
    name = re.sub(r"[^a-z0-9._-]+", "-", directory.name.lower()).lstrip("._-")[:64] or "model"
    variant = "pruned" if spec.compact else "dense"
    request, why, engine = _settled(request, spec, directory, ())
    return ResolvedModel(
        ref=f"{name}@{variant}",
        model=name,
        variant=variant,
        version=None,
        digest=None,
        parent=None,
        parameters=None,
        directory=directory,
        spec=spec,
        request=request,
        dtype_why=why,
        engine=engine,
    )


def _settled(
    request: ModelRequest, spec: ModelSpec, directory: Path, records: Sequence[QualityRecord]
) -> tuple[ModelRequest, str, str]:
    """The request as it will be loaded, why in this dtype, and what will run it.

    A model with so many positions takes no longer sources, whatever was asked for.

    Raises:
        SettingsError: this machine has not what is asked for.
    """
    try:
        config, choice = with_dtype(request.engine.within(spec.max_positions), records)
        refusal = why_not(config)
        if refusal is None:
            if config.dtype == "int4":
                check_calibrated(directory)
            return replace(request, engine=config), choice.why, engine_name(config)
    except LoadError as error:
        refusal = str(error)
    raise SettingsError(f"model {request.ref!r}: {refusal}")


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}: give the folder of a Hugging Face model") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidRequestError(f"{path} is not a JSON object")
    return config
