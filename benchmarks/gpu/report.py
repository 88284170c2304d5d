"""The final table: measured figures beside published ones."""

from typing import Any

from benchmarks.gpu.shapes import PUBLISHED, TARGET_OF_PUBLISHED, TARGET_STEP_MS
from benchmarks.gpu.staged import NOT_RUN

_HEADER = (
    f"{'':<12} {'batch':>5} {'ms':>9} {'published':>9} {'ratio':>6}   "
    f"{'tokens/s':>9} {'published':>9} {'older':>9} {'ratio':>6}   {'of limit':>8}"
)


def report(document: dict[str, Any], names: list[str]) -> str:
    """Lines for the published shapes, for T5-base's step, for tests and memory, and for every stage.

    The limit is the time to read the data that all steps must read from memory, at the bandwidth of a copy. A miniature
    run is not compared with the figures published for a GPU.
    """
    stages, miniature = document["stages"], document["key"]["miniature"]
    lines = ["", _HEADER]
    for shape, published in PUBLISHED.items():
        batches = _parts(stages, shape, "batch ")
        for row in sorted(batches.values(), key=lambda row: int(row["batch"])):
            lines.append(_row(shape, row, None if miniature else published.get(row["batch"]), _bandwidth(stages)))
    if not miniature:
        lines.append(
            f"Published: TensorRT-LLM on one H100; up to 128 tokens out, where ours are forced to 128, so compare "
            f"tokens/s. Target: {TARGET_OF_PUBLISHED} of its time."
        )
    for name, step in _parts(stages, "t5-base", "step, ").items():
        target = "" if miniature else f" (target {TARGET_STEP_MS} ms)"
        lines.append(
            f"t5-base, batch 1, {name.removeprefix('step, ')}: {step['step_ms']:.3f} ms a step in the engine{target}, "
            f"{step['backend_step_ms']:.3f} ms in the backend"
        )
    for name, tests in _parts(stages, "tests", "").items():
        lines.append(f"{name}: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")
    for name, told in _parts(stages, "memory", "").items():
        unexpected = "" if miniature or told["outcome"] == told["expected"] else f", expected was {told['expected']}"
        lines.append(f"memory, {name}: {told['outcome']}{unexpected}")
    for name in names:
        entry = stages.get(name, {"status": NOT_RUN, "reason": "", "seconds": 0.0, "parts": {}, "failures": {}})
        reason = f" ({entry['reason']})" if entry["reason"] else ""
        lines.append(f"{name:<12} {entry['status']}, {len(entry['parts'])} parts, {entry['seconds']:.1f} s{reason}")
        lines += [f"  {part}: {failure['error']}" for part, failure in entry["failures"].items()]
    return "\n".join(lines)


def _parts(stages: dict[str, Any], stage: str, prefix: str) -> dict[str, Any]:
    parts = stages.get(stage, {}).get("parts", {})
    return {name: part for name, part in parts.items() if name.startswith(prefix)}


def _bandwidth(stages: dict[str, Any]) -> float | None:
    copy = _parts(stages, "machine", "copy").get("copy")
    return None if copy is None else float(copy["bytes_per_s"])


def _row(shape: str, row: dict[str, Any], published: Any, bytes_per_s: float | None) -> str:
    beside = (f"{'':>9} {'':>6}", f"{'':>9} {'':>9} {'':>6}")
    if published is not None:
        beside = (
            f"{published.total_ms:9.0f} {row['total_ms'] / published.total_ms:6.2f}",
            f"{published.tokens_per_s:9.0f} {published.older_tokens_per_s:9.0f} "
            f"{row['tokens_per_s'] / published.tokens_per_s:6.2f}",
        )
    limit = "" if bytes_per_s is None else f"{1e3 * row['read_bytes'] / bytes_per_s / row['total_ms']:8.0%}"
    return (
        f"{shape:<12} {row['batch']:>5} {row['total_ms']:9.1f} {beside[0]}   "
        f"{row['tokens_per_s']:9.0f} {beside[1]}   {limit}"
    )
