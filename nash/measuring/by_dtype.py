"""Quality by dtype: how the engine's faster dtypes change a model's answers, for the records beside its version."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version

from rich.console import Console

from model_store.model.model import Model
from model_store.version.quality import REFERENCE, QualityRecord, finding
from nash.data.rows import TaskRow
from nash.measuring.evaluate import evaluate
from nash.measuring.metrics import HEADLINE, LOWER_IS_BETTER
from nash.recipes.recipe import MetricKind
from nash.run.progress import Stage
from server.engine.capabilities import engine_name, speed_order
from server.engine.interface.config import EngineConfig
from server.engine.machine.cpus import instruction_sets


def quality_record(
    metrics: Mapping[str, float], kind: MetricKind, config: EngineConfig, rows: Sequence[TaskRow], split: str
) -> QualityRecord:
    """The record of a model's metrics on the rows under `config`, whose dtype is never "auto"."""
    metric = HEADLINE[kind]
    return QualityRecord(
        dtype=config.dtype,
        metric=metric,
        value=metrics[metric],
        lower_is_better=metric in LOWER_IS_BETTER,
        data=_digest(rows),
        split=split,
        rows=len(rows),
        max_source_tokens=config.max_source_tokens,
        max_new_tokens=config.max_new_tokens,
        device=config.device.partition(":")[0],
        engine=engine_name(config),
        instruction_sets=instruction_sets(),
        code_version=version("nash"),
    )


def _digest(rows: Sequence[TaskRow]) -> str:
    """A digest of the content: another prefix or other columns of the same file are different data."""
    return hashlib.sha256(json.dumps([[row.source, *row.targets] for row in rows]).encode()).hexdigest()


def quality_by_dtype(
    name: str,
    model: Model,
    rows: Sequence[TaskRow],
    split: str,
    kind: MetricKind,
    config: EngineConfig,
    known: Mapping[str, float],
    console: Console,
    *,
    recorded: Sequence[QualityRecord] = (),
) -> list[QualityRecord]:
    """Records of a model in float32 and this machine's faster dtypes, fastest first, to the first whose quality holds.

    "auto" takes that dtype, so slower ones would change nothing. `known` are the metrics on the rows under `config`,
    which is float32. Dtypes that are already `recorded` are not evaluated again.
    """
    assert config.dtype == REFERENCE
    records = [quality_record(known, kind, config, rows, split)]
    for dtype in speed_order(config):
        if dtype == REFERENCE:
            break
        there = [record for record in recorded if record.key == replace(records[0], dtype=dtype).key]
        if not there:
            asked = replace(config, dtype=dtype)
            with Stage(f"evaluating the {name} model in {dtype}", console, len(rows), unit="rows") as stage:
                metrics = evaluate(model, rows, kind, asked, stage.update).metrics
            there = [quality_record(metrics, kind, asked, rows, split)]
        records += there
        found = finding(dtype, records[0].device, records)
        assert found is not None
        console.print(f"the {name} model in {dtype}: {found.why}", soft_wrap=True)
        if found.holds:
            break
    return records
