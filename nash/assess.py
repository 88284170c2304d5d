"""Quality and latency of finished models, measured on the engine that will serve them."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from nash.data import Row
from nash.evaluate import evaluate
from nash.latency import measure_side_by_side
from nash.models import load_tokenizer
from nash.recipe import DataRecipe, MetricKind
from server.engine.sequence import EngineConfig

LATENCY_REPEATS = 21  # one request takes milliseconds: a few more keep the medians still


def assess(
    folders: dict[str, Path], rows: Sequence[Row], metric: MetricKind, data: DataRecipe, console: Console
) -> dict[str, Any]:
    """Figures of each model, by the models' names, ready to be kept as JSON.

    Latency is that of one request alone with the rows' median lengths, the models measured in turn, in milliseconds.
    """
    config = EngineConfig(max_source_tokens=data.max_source_tokens, max_new_tokens=data.max_target_tokens)
    quality: dict[str, dict[str, float]] = {}
    for name, folder in folders.items():
        console.print(f"evaluating the {name} model on {len(rows)} rows")
        quality[name] = evaluate(folder, rows, metric, config).metrics
    tokenizer = load_tokenizer(next(iter(folders.values())))
    source_tokens = _median_tokens(tokenizer, [row.source for row in rows], data.max_source_tokens)
    new_tokens = _median_tokens(tokenizer, [row.targets[0] for row in rows], data.max_target_tokens)
    console.print(f"measuring latency: {source_tokens} tokens in, {new_tokens} out")
    latencies = measure_side_by_side(
        list(folders.values()), batch=1, source_tokens=source_tokens, new_tokens=new_tokens, repeats=LATENCY_REPEATS
    )
    figures: dict[str, Any] = {"n": len(rows), "source_tokens": source_tokens, "new_tokens": new_tokens}
    for name, latency in zip(folders, latencies, strict=True):
        figures[name] = {
            "metrics": quality[name],
            "encoder_ms": latency.encode_ms,
            "step_ms": latency.step_ms,
            "total_ms": latency.total_ms,
        }
    return figures


def _median_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int) -> int:
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    return min(round(statistics.median(lengths)), limit)
