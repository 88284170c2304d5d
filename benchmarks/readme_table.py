"""Writes the tables of results in README.md and docs/performance.md from the files in benchmarks/results.

python -m benchmarks.readme_table            rewrites what stands between the marks of each table, and docs/results.png
python -m benchmarks.readme_table --check    exits 1 if a page does not say what the files say
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docs.marked import rewritten

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Documents that `nash prune --json` printed.
PRUNED = ("g2p-pruned.json", "g2p-pruned-1.json", "g2p-pruned-1-narrow.json")
END_TO_END = "g2p-end-to-end.json"  # written by benchmarks/end_to_end.py
ENGINE, ENGINE_SHAPE = "engine-cpu.json", "t5-small"  # written by benchmarks/engine_cpu.py


def results_table() -> str:
    """The example's results as a Markdown table, with a line on how they were measured."""
    reports = [_read(name) for name in PRUNED]
    served = _read(END_TO_END)
    rows = [_row("dense, 6 decoder layers", reports[0]["dense"], reports[0]["dense_ref"], served)]
    for report in reports:
        what = f"{report['decoder_layers']} decoder layer{'s' if report['decoder_layers'] > 1 else ''}, "
        what += f"{100 * report['encoder_sparsity']:.0f} % of the encoder cut"
        rows.append(_row(what, report["pruned"], report["ref"], served))
    environment, workload = served["environment"], served["workload"]
    return "\n".join(
        [
            "| g2p, test split | phoneme errors | word errors | parameters | `/generate` alone | 16 in flight |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"{reports[0]['n']} test words. Medians of {workload['rounds']} interleaved rounds of "
            f"{workload['requests']} requests on {environment['cores']} cores of an {environment['cpu']}, float32, "
            "client on the same machine; speed-up against dense in the same round. Made from "
            "[benchmarks/results](benchmarks/results) by `python -m benchmarks.readme_table`.",
            "",
        ]
    )


def _row(what: str, side: dict[str, Any], ref: str, served: dict[str, Any]) -> str:
    metrics = side["metrics"]
    cells = [
        what,
        f"{metrics['phoneme_error_rate']:.2f} %",
        f"{metrics['word_error_rate']:.2f} %",
        f"{side['parameters'] / 1e6:.2f} M",
    ]
    for level in served["concurrency"]:
        variant = next(v for v in level["variants"] if v["ref"] == ref)
        cells.append(f"{variant['p50_ms']:.1f} ms, {variant['speedup']:.2f}x")
    return "| " + " | ".join(cells) + " |"


def engine_table() -> str:
    """The engine beside its peers as a Markdown table, with a line on how they were measured."""
    document = _read(ENGINE)
    rows = [row for row in document["rows"] if row["shape"] == ENGINE_SHAPE]
    batches = sorted({row["batch"] for row in rows})
    names = dict.fromkeys((row["contender"], row["dtype"]) for row in rows)
    lines = []
    for name, dtype in names:
        cells = [f"{name}, {dtype}"]
        for batch in batches:
            # A contender with several thread counts is quoted at its best.
            same = [row for row in rows if (row["contender"], row["dtype"], row["batch"]) == (name, dtype, batch)]
            cells.append(f"{min(row['step_ms'] for row in same):.2f} / {min(row['total_ms'] for row in same):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    environment = document["environment"]
    packages = environment["packages"]
    return "\n".join(
        [
            "| milliseconds a step / a whole answer | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
            "|---|" + "---|" * len(batches),
            *lines,
            "",
            f"T5-small's shape, 64 tokens in and 64 out, random weights, greedy, {environment['cores']} cores of an "
            f"{environment['cpu']}; transformers {packages['transformers']}, CTranslate2 at the better of one and two "
            f"threads; medians of interleaved runs, {document['bandwidth_bytes_per_s'] / 1e9:.0f} GB/s read in the "
            "same run. Made by `python -m benchmarks.engine_cpu`.",
            "",
        ]
    )


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"results": results_table},
    "docs/performance.md": {"engine": engine_table},
}
PICTURE = "docs/results.png"


def draw(path: Path) -> None:
    """Quality over speed, from the same files as the results' table."""
    import matplotlib.pyplot as plt

    reports, served = [_read(name) for name in PRUNED], _read(END_TO_END)
    points = [("dense\n6 decoder layers", reports[0]["dense"], reports[0]["dense_ref"])]
    for report in reports:
        layers, cut = report["decoder_layers"], report["encoder_sparsity"]
        label = f"{layers} layer{'s' if layers > 1 else ''}\n{100 * cut:.0f} % of the encoder cut"
        points.append((label, report["pruned"], report["ref"]))
    alone = {variant["ref"]: variant["speedup"] for variant in served["concurrency"][0]["variants"]}
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for number, (label, side, ref) in enumerate(points):
        speedup, right = alone[ref], 100 - side["metrics"]["word_error_rate"]
        axes.plot(speedup, right, "*" if ref == points[0][2] else "o", color="#0a7f5a", markersize=9)
        below = number % 2 == 1  # neighbours are close: their labels take turns
        axes.annotate(
            label,
            (speedup, right),
            xytext=(0, -10 if below else 10),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            fontsize=9,
        )
    axes.set(xlabel="times as fast as the dense model, through the server", ylabel="words right, %")
    axes.set_xlim(0.7, 3.2)
    axes.set_ylim(66, 78)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def main() -> None:
    """Rewrite the pages and the picture, or check the pages."""
    parser = argparse.ArgumentParser(description="Make the tables of results.")
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check
    for name, tables in TABLES.items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        wanted = rewritten(text, tables)
        if check and (wanted != text or not (ROOT / PICTURE).is_file()):
            sys.exit(f"{name} does not say what benchmarks/results say: run python -m benchmarks.readme_table")
        if not check:
            page.write_text(wanted, encoding="utf-8")
    if not check:
        draw(ROOT / PICTURE)


if __name__ == "__main__":
    main()
