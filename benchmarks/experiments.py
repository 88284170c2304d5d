"""Writes the tables and plots of docs/experiments.md from the files in benchmarks/results/experiments.

python -m benchmarks.experiments            rewrites tables and plots
python -m benchmarks.experiments --check    exits 1 if the tables differ from the files

`TASK-methods.json`, `TASK-sparsity.json` and `TASK-losses.json` hold the output of `nash sweep --json` for the recipe
of that name in examples/g2p/experiments or, for the task "synopsis", examples/debian/experiments. `TASK-speeds.json`
lists the outputs of `nash prune --speedup ... --json` for speed.toml. benchmarks/headline.py writes `headline-*.json`,
and the benchmarks of the same names write the other files.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.marked import rewritten
from nash.measuring.metrics import quality
from nash.recipes.recipe import MetricKind

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "experiments"
PAGE = ROOT / "docs" / "experiments.md"
PLOTS = ROOT / "docs" / "experiments"
SHAPES = ("t5-small", "t5-base")
# Tasks with finished models, and the name of their quality figure.
QUALITY = {"g2p": "words right, %", "synopsis": "ROUGE-L", "translation": "BLEU", "multi30k": "BLEU"}
# Their other metrics. Lsum is left out: a synopsis has one line, so it equals L.
OTHER_METRICS = {
    "g2p": {"phoneme_error_rate": "phoneme errors, %"},
    "synopsis": {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2"},
    "translation": {"chrf": "chrF"},
    "multi30k": {"chrf": "chrF"},
}
HEADLINES = ("g2p", "synopsis", "translation")  # tasks whose best models are shipped
AT_EQUAL_SPEED = ("g2p", "multi30k")  # tasks with a sweep of every method at the same speeds
SWITCHED = ("g2p",)  # tasks with a sweep of the method's switches
# Tasks with the other sweeps, and their kind of metric.
SWEPT: dict[str, MetricKind] = {"g2p": "phonemes", "synopsis": "summarization"}
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dfdcd4",
    "lines.linewidth": 2,
    "figure.facecolor": "#fffefb",
    "axes.facecolor": "#fffefb",
    "axes.prop_cycle": cycler(color=["#0a7d5a", "#b4531a", "#6d4bc3", "#1f6fb2", "#b02a6b", "#7a6a00"]),
}


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _benchmark(name: str) -> Any:
    return json.loads((RESULTS.parent / name).read_text(encoding="utf-8"))


def _spread(spread: dict[str, Any], digits: int = 2) -> str:
    mean, deviation = f"{spread['mean']:.{digits}f}", spread["deviation"]
    return mean if deviation is None else f"{mean} ± {deviation:.{digits}f}"


def _deviation(shape: dict[str, Any]) -> float:
    return float(shape["quality"]["deviation"] or 0.0)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def _against(shape: dict[str, Any], whom: str) -> str:
    difference = shape.get(f"against_{whom}")
    if difference is None:
        return ""
    low, high = difference["interval"]
    return f"{difference['value']:+.2f} ({low:+.2f} to {high:+.2f})"


def methods_table(task: str, sweep_of: str = "methods") -> str:
    """Every method at its shapes beside the dense model: all metrics, and intervals where the sweep has them."""
    sweep = _read(f"{task}-{sweep_of}.json")
    dense = sweep["dense"]
    compared = [whom for whom in ("dense", "control") if any(f"against_{whom}" in each for each in sweep["shapes"])]
    others = [f"{dense['metrics'][name]:.2f}" for name in OTHER_METRICS[task]]
    figures = [f"{dense['quality']:.2f}", "100 %", *([""] * len(compared)), *others, "1.00"]
    rows = [["dense", str(dense["decoder_layers"]), "0 %", *figures]]
    points = {point["id"]: point for point in sweep["points"]}
    for shape in sorted(sweep["shapes"], key=lambda shape: shape["speedup"]["mean"]):
        own = [points[name] for name in shape["points"]]
        cut = sum(point["encoder_cut"] for point in own) / len(own)
        kept = shape["quality"]["mean"] / dense["quality"]
        rows.append(
            [
                shape["method"],
                str(shape["decoder_layers"]),
                f"{cut:.0%}",
                _spread(shape["quality"]),
                f"{kept:.1%}",
                *(_against(shape, whom) for whom in compared),
                *(_spread(shape["metrics"][name]) for name in OTHER_METRICS[task]),
                f"{shape['speedup']['mean']:.2f}",
            ]
        )
    header = ["method", "decoder layers", "encoder cut", QUALITY[task], "of the dense"]
    header += [f"against the {whom}" for whom in compared]
    return _markdown([*header, *OTHER_METRICS[task].values(), "times as fast"], rows)


def sparsity_table(task: str) -> str:
    """Quality and encoder time over encoder sparsity."""
    sweep = _read(f"{task}-sparsity.json")
    points = {point["id"]: point for point in sweep["points"]}
    rows = []
    for shape in sorted(sweep["shapes"], key=lambda shape: shape["encoder_sparsity"]):
        own = [points[name] for name in shape["points"]]
        encoder_ms = sum(point["encoder_ms"] for point in own) / len(own)
        speed = f"{shape['speedup']['mean']:.2f}"
        rows.append([f"{shape['encoder_sparsity']:.0%}", _spread(shape["quality"]), f"{encoder_ms:.3f}", speed])
    return _markdown(["encoder sparsity", QUALITY[task], "encoder, ms", "times as fast"], rows)


def losses_table(task: str) -> str:
    """Each variant of the losses against all losses, seed by seed."""
    sweep = _read(f"{task}-losses.json")
    points = {point["id"]: point for point in sweep["points"]}
    found = {
        shape["method"]: {points[i]["seed"]: quality(SWEPT[task], points[i]["metrics"]) for i in shape["points"]}
        for shape in sweep["shapes"]
    }
    reference = found["all losses"]
    rows = []
    for shape in sweep["shapes"]:
        gains = [each - reference[seed] for seed, each in sorted(found[shape["method"]].items())]
        gained = "" if shape["method"] == "all losses" else ", ".join(f"{gain:+.2f}" for gain in gains)
        rows.append([shape["method"], _spread(shape["quality"]), gained])
    return _markdown(["", QUALITY[task], "against all losses, by seed"], rows)


def switches_table(task: str) -> str:
    """Each switch of the method against the same run without it."""
    shapes = _read(f"{task}-switches.json")["shapes"]
    usual = shapes[0]["quality"]["mean"]
    rows = [[each["method"], _spread(each["quality"]), f"{each['quality']['mean'] - usual:+.2f}"] for each in shapes]
    rows[0][-1] = ""
    return _markdown(["", QUALITY[task], "against as it is"], rows)


def speeds_table(task: str) -> str:
    """Requested, predicted and measured speed."""
    rows = [
        [
            f"{run['asked']:g}",
            f"{run['predicted']:.2f}",
            f"{run['measured']:.2f}",
            f"{run['measured'] / run['asked'] - 1:+.1%}",
            str(run["decoder_layers"]),
            f"{run['encoder_sparsity']:.0%}",
        ]
        for run in _read(f"{task}-speeds.json")
    ]
    return _markdown(["asked", "predicted", "measured", "missed by", "decoder layers", "encoder cut"], rows)


def headline_table(name: str) -> str:
    """A task's best models beside the dense one: quality in both dtypes, speed with one thread and with two."""
    dense, *others = _read(f"headline-{name}.json")["models"]
    timed = [f"{each['dtype']}, {_threads(each)}" for each in dense["latency"]]
    header = ["", QUALITY[name], "of the dense", *OTHER_METRICS[name].values(), f"{QUALITY[name]}, int8", *timed]
    rows = []
    for model in [dense, *others]:
        full, small = (each["quality"] for each in model["quality"])
        metrics = model["quality"][0]["metrics"]
        cells = [
            _what_is_left(model),
            f"{full:.2f}",
            f"{full / dense['quality'][0]['quality']:.1%}",
            *(f"{metrics[metric]:.2f}" for metric in OTHER_METRICS[name]),
            f"{small:.2f}",
        ]
        shown = "{total_ms:.2f} ms" if model is dense else "{speedup:.2f}"
        rows.append([*cells, *(shown.format_map(each) for each in model["latency"])])
    return _markdown(header, rows)


def _threads(latency: dict[str, Any]) -> str:
    return "one thread" if latency["threads"] == 1 else f"{latency['threads']} threads"


def _what_is_left(model: dict[str, Any]) -> str:
    layers, cut = model["decoder_layers"], model["encoder_sparsity"]
    named = "1 layer" if layers == 1 else f"{layers} layers"
    return f"{named}, {cut:.0%} of the encoder cut" if cut else f"dense, {layers} decoder layers"


def scaling_table() -> str:
    """The cost of one layer of each stack in a whole answer."""
    rows = []
    for name in SHAPES:
        for result in _read(f"scaling-{name}.json")["results"]:
            decoder, encoder = result["total_ms_over_decoder_layers"], result["total_ms_over_encoder_layers"]
            rows.append(
                [
                    f"{name}, batch {result['batch']}",
                    f"{decoder['slope']:.2f}",
                    f"{encoder['slope']:.2f}",
                    f"{decoder['slope'] / encoder['slope']:.1f}",
                    f"{decoder['r2']:.4f}",
                ]
            )
    header = ["", "a decoder layer, ms", "an encoder layer, ms", "ratio", "R² of the decoder's line"]
    return _markdown(header, rows)


def t5_base_table() -> str:
    """T5-base's shape: whole answers and steps over the dense model's."""
    rows = []
    for result in _benchmark("t5-base.json")["results"]:
        for row in result["rows"]:
            name = f"{result['dtype']}, batch {result['batch']}, {row['model']}"
            times = [f"{row[key]:.{digits}f}" for key, digits in (("encode_ms", 1), ("step_ms", 2), ("total_ms", 0))]
            rows.append([name, *times, f"{row['speedup']:.2f}", f"{row['step_speedup']:.2f}"])
    return _markdown(["", "encoder, ms", "step, ms", "answer, ms", "times as fast", "its step"], rows)


def training_table() -> str:
    """The cost of a pruning step relative to a plain fine-tuning step of the same student."""
    rows = []
    for result in _benchmark("training-cost.json")["results"]:
        step = result["step_ms"]
        rows.append(
            [
                f"{result['shape']}, {result['decoder_layers']} decoder layers",
                f"{step['plain fine-tuning']:.0f}",
                f"{step['distillation and gates']:.0f}",
                f"{result['over_plain']:.2f}",
                f"{result['share_of_gates']:.1%}",
                f"{result['memory_over_teacher_and_plain']:.2f}",
            ]
        )
    header = ["student", "fine-tuning, ms", "pruning, ms", "ratio", "gates' share", "memory over teacher + fine-tuning"]
    return _markdown(header, rows)


TABLES: dict[str, Callable[[], str]] = {
    "scaling": scaling_table,
    **{f"{task}-methods": partial(methods_table, task) for task in SWEPT},
    **{f"{task}-equal-speed": partial(methods_table, task, "equal-speed") for task in AT_EQUAL_SPEED},
    **{f"{task}-switches": partial(switches_table, task) for task in SWITCHED},
    **{f"{task}-sparsity": partial(sparsity_table, task) for task in SWEPT},
    **{f"{task}-losses": partial(losses_table, task) for task in SWEPT},
    **{f"headline-{task}": partial(headline_table, task) for task in HEADLINES},
    **{f"{task}-speeds": partial(speeds_table, task) for task in SWEPT},
    "t5-base": t5_base_table,
    "training": training_table,
}


def scaling_plot(figure: Figure) -> None:
    """Time of a whole answer over the layers of each stack."""
    panels = figure.subplots(1, len(SHAPES), squeeze=False)[0]
    for axes, name in zip(panels, SHAPES, strict=True):
        result = _read(f"scaling-{name}.json")["results"][0]
        most = max(row["decoder_layers"] for row in result["rows"])
        for stack, other in (("decoder", "encoder"), ("encoder", "decoder")):
            rows = sorted(
                (row[f"{stack}_layers"], row["total_ms"])
                for row in result["rows"]
                if row[f"{other}_layers"] == most and not row["encoder_sparsity"]
            )
            axes.plot(*zip(*rows, strict=True), marker="o", label=f"{stack} layers")
        axes.set(title=f"{name}, batch {result['batch']}", xlabel="layers kept", ylabel="a whole answer, ms")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)


def sparsity_plot(figure: Figure) -> None:
    """Quality over encoder sparsity, with a panel for each task."""
    panels = figure.subplots(1, len(SWEPT), squeeze=False)[0]
    for axes, task in zip(panels, SWEPT, strict=True):
        shapes = sorted(_read(f"{task}-sparsity.json")["shapes"], key=lambda shape: shape["encoder_sparsity"])
        x = [shape["encoder_sparsity"] for shape in shapes]
        means = [shape["quality"]["mean"] for shape in shapes]
        axes.errorbar(x, means, yerr=[_deviation(shape) for shape in shapes], marker="o", capsize=4)
        axes.set(title=task, xlabel="encoder sparsity", ylabel=QUALITY[task])


def methods_plot(task: str, figure: Figure, sweep_of: str = "methods") -> None:
    """Quality against speed, with a mark for each method and shape."""
    sweep = _read(f"{task}-{sweep_of}.json")
    axes: Axes = figure.subplots()
    axes.plot(1, sweep["dense"]["quality"], marker="*", markersize=14, color="#1b1d1f", linestyle="", label="dense")
    for method in dict.fromkeys(shape["method"] for shape in sweep["shapes"]):
        own = sorted((s for s in sweep["shapes"] if s["method"] == method), key=lambda s: s["speedup"]["mean"])
        axes.errorbar(
            [shape["speedup"]["mean"] for shape in own],
            [shape["quality"]["mean"] for shape in own],
            yerr=[_deviation(shape) for shape in own],
            marker="o",
            capsize=3,
            linewidth=1,
            label=method,
        )
    axes.set(xlabel="times as fast as the dense model", ylabel=QUALITY[task])
    axes.legend(frameon=False, fontsize=9)


DRAWN: dict[str, tuple[Callable[[Figure], None], tuple[float, float]]] = {
    "scaling": (scaling_plot, (9, 3.6)),
    **{f"{task}-methods": (partial(methods_plot, task), (8, 4.6)) for task in SWEPT},
    **{
        f"{task}-equal-speed": (partial(methods_plot, task, sweep_of="equal-speed"), (8, 4.6))
        for task in AT_EQUAL_SPEED
    },
    "sparsity": (sparsity_plot, (9, 3.6)),
}


def main() -> None:
    """Rewrite the page's tables and draw its plots, or check the tables."""
    parser = argparse.ArgumentParser(description="Make the tables and plots of docs/experiments.md.")
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    wanted = rewritten(text, TABLES)
    if check:
        if wanted != text:
            sys.exit("docs/experiments.md does not say what the results say: run python -m benchmarks.experiments")
        return
    PAGE.write_text(wanted, encoding="utf-8")
    PLOTS.mkdir(exist_ok=True)
    for name, (draw, size) in DRAWN.items():
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure)
            figure.savefig(PLOTS / f"{name}.png", dpi=140, metadata={"Software": None})


if __name__ == "__main__":
    main()
