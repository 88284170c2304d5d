"""What a sweep says of figures that are known: the frontier, the sentence, the picture and the page."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from nash.measuring.figures import Figures, Latency, MeasuredModel
from nash.measuring.latency import Speedup, Workload
from nash.measuring.significance import Difference
from nash.recipes.sweep import Shape
from nash.sweep.page import write_report
from nash.sweep.plot import frontier_png, frontier_svg
from nash.sweep.report import Compared, Failure, PointFigures, SweepReport


def measured(metrics: dict[str, float], encoder_ms: float, step_ms: float, total_ms: float) -> MeasuredModel:
    latency = Latency(encoder_ms=encoder_ms, step_ms=step_ms, total_ms=total_ms)
    figures = Figures(metrics=metrics, latency=latency)
    return MeasuredModel(figures=figures, parameters=3_000_000, bytes=6_000_000)


DENSE = measured({"phoneme_error_rate": 6.0, "word_error_rate": 25.0}, 1.9, 0.9, 12.0)
FELL = Difference(value=-1.4, interval=(-2.05, -0.75))
ROSE = Difference(value=0.3, interval=(-0.25, 0.85))
# method, layers, sparsity, word error rate of two seeds, speed-up of two seeds
ROWS = (
    ("NASH", 4, 0.0, (25.2, 25.6), (1.38, 1.40)),
    ("NASH", 2, 0.3, (26.1, 26.7), (2.31, 2.35)),
    ("NASH", 1, 0.3, (28.4, 29.4), (3.60, 3.70)),
    ("NASH", 1, 0.6, (33.0, 34.2), (4.10, 4.16)),
    ("CoFi", 6, 0.6, (31.0, 32.0), (1.50, 1.56)),
    ("shrink-and-fine-tune", 2, 0.0, (27.9, 28.5), (2.05, 2.10)),
)


def times(speedup: float) -> Speedup:
    return Speedup(median=speedup, interval=(speedup - 0.05, speedup + 0.05), quartiles=(speedup - 0.1, speedup + 0.1))


def points() -> list[PointFigures]:
    made = []
    for seed in (0, 1):
        for method, layers, sparsity, errors, speedups in ROWS:
            shape = Shape(decoder_layers=layers, encoder_sparsity=sparsity)
            made.append(
                PointFigures(
                    id=f"{method.lower()}-{shape.slug}-seed{seed}",
                    method=method,
                    shape=shape,
                    decoder_layers=layers,
                    encoder_cut=sparsity + 0.004,
                    seed=seed,
                    measured=measured(
                        {"phoneme_error_rate": errors[seed] / 4, "word_error_rate": errors[seed]},
                        1.4,
                        0.4,
                        12.0 / speedups[seed],
                    ),
                    validation={"phoneme_error_rate": errors[seed] / 4, "word_error_rate": errors[seed]},
                    speedup=times(speedups[seed]),
                    ref="g2p@fast" if (layers, sparsity) == (1, 0.6) else None,
                )
            )
    return made


def report(made: list[PointFigures], failures: tuple[Failure, ...] = (), busyness: float = 1.02) -> SweepReport:
    return SweepReport(
        name="g2p",
        metric="phonemes",
        n=2000,
        workload=Workload(batch=1, source_tokens=9, new_tokens=8),
        quality_kept=0.97,
        dense=DENSE,
        dense_validation=DENSE.metrics,
        dense_layers=6,
        points=made,
        compared={(p.method, p.shape): Compared(dense=FELL, control=ROSE) for p in made},
        failures=list(failures),
        busyness=busyness,
    )


REPORT = report(points())


def test_the_document() -> None:
    document = json.loads(json.dumps(REPORT.document(), allow_nan=False))
    assert len(document["points"]) == 12
    first = document["points"][0]
    assert {"decoder_layers", "encoder_sparsity", "seed", "metrics", "speedup"} <= first.keys()
    assert (first["decoder_layers"], first["encoder_sparsity"], first["seed"]) == (4, 0.0, 0)
    assert "ref" not in first
    assert [p["ref"] for p in document["points"] if "ref" in p] == ["g2p@fast", "g2p@fast"]
    assert document["quality"] == "100 \N{MINUS SIGN} word error rate"
    assert document["dense"]["quality"] == 75.0


def test_the_frontier_is_over_means() -> None:
    frontier = json.loads(json.dumps(REPORT.document()))["frontier"]
    assert [(f["method"], f["shape"]) for f in frontier] == [
        ("NASH", "d4-s0"),
        ("NASH", "d2-s0.3"),
        ("NASH", "d1-s0.3"),
        ("NASH", "d1-s0.6"),
    ]
    assert frontier[1]["quality"]["mean"] == pytest.approx(100 - 26.4)
    assert frontier[1]["quality"]["deviation"] == pytest.approx(0.3 * 2**0.5)
    assert frontier[1]["seeds"] == [0, 1]
    assert frontier[1]["against_dense"] == {"value": -1.4, "interval": [-2.05, -0.75]}
    assert frontier[1]["against_control"]["value"] == 0.3
    assert frontier[3]["refs"] == ["g2p@fast", "g2p@fast"]
    assert REPORT.dense_on_frontier
    assert len(REPORT.on_frontier) == 8


def test_a_shape_that_the_dense_model_beats_is_not_on_the_frontier() -> None:
    slow = [p for p in points() if p.method == "CoFi"]
    beaten = report([PointFigures(**{**vars(p), "speedup": times(0.9)}) for p in slow])
    assert beaten.frontier == []
    better = measured({"phoneme_error_rate": 5.0, "word_error_rate": 20.0}, 1.4, 0.4, 8.0)
    beating = report([PointFigures(**{**vars(p), "measured": better, "validation": better.metrics}) for p in slow])
    assert len(beating.frontier) == 1
    assert not beating.dense_on_frontier


def test_the_headline_is_the_fastest_shape_that_keeps_its_quality() -> None:
    assert REPORT.headline == (
        "NASH, 2 of 6 decoder layers, 30% of the encoder cut: 2.33x as fast, with 98.1% of the dense quality "
        "(95 % interval of the difference: -2.05 to -0.75 points)"
    )
    assert REPORT.best is not None
    assert REPORT.document()["best"]["shape"] == "d2-s0.3"
    poor = report([p for p in points() if p.method == "CoFi"])
    assert poor.headline == "No shape keeps 97% of the dense quality"
    assert poor.document()["best"] is None


def test_the_table() -> None:
    console = Console(width=88, file=io.StringIO())
    with console.capture() as capture:
        console.print(REPORT.table())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]
    assert ["dense *", "6", "0%", "25.00", "1.00x", ""] in rows
    assert ["NASH *", "2", "30%", "26.40 ± 0.42", "2.33 ± 0.03x", "2"] in rows
    assert ["CoFi", "6", "60%", "31.50 ± 0.71", "1.53 ± 0.04x", "2"] in rows


def test_the_cut_is_what_was_cut_and_not_what_was_asked() -> None:
    """Gates in both stacks are asked for a sparsity of both, and cut more of the encoder, or less."""
    both = [PointFigures(**{**vars(p), "encoder_cut": 0.84}) for p in points() if p.method == "CoFi"]
    [shape] = report(both).shapes
    assert report(both).describe(shape) == "6 of 6 decoder layers, 84% of the encoder cut"
    assert (shape.document()["encoder_sparsity"], shape.document()["encoder_cut"]) == (0.6, pytest.approx(0.84))
    console = Console(width=88, file=io.StringIO())
    with console.capture() as capture:
        console.print(report(both).table())
    assert "84%" in capture.get()


def test_the_frontiers_line_runs_from_slow_to_fast() -> None:
    """Also where a shape that is better than the dense model is slower."""
    better = measured({"phoneme_error_rate": 5.0, "word_error_rate": 20.0}, 1.4, 0.4, 12.4)
    changed = {
        "shape": Shape(decoder_layers=6, encoder_sparsity=0.1),
        "speedup": times(0.97),
        "measured": better,
        "validation": better.metrics,
    }
    slow = [PointFigures(**{**vars(p), **changed}) for p in points() if p.method == "CoFi"]
    svg = frontier_svg(report([*points(), *slow]))
    path = re.search(r'id="wide-line2d_\d+">\s*<path d="([^"]*)"[^>]*stroke-dasharray: 5', svg)
    assert path is not None
    x = [float(point) for point in re.findall(r"[ML] ([\d.]+) ", path[1])]
    assert len(x) == 6
    assert x == sorted(x)


def test_equal_figures_give_an_equal_picture() -> None:
    assert frontier_png(REPORT).startswith(b"\x89PNG")
    assert frontier_svg(REPORT) == frontier_svg(report(points()))


def test_the_picture_wears_the_colours_of_the_page() -> None:
    svg = frontier_svg(REPORT)
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
    for variable in ("--ink", "--soft", "--surface", "--tone-0", "--tone-1", "--tone-2"):
        assert f"var({variable})" in svg


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    failure = Failure(id="nash-d1-s0.9-seed0", error="training went astray: the loss is <nan>")
    write_report(report(points(), (failure,)), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.json", "frontier.png", "report.html"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href)=\"(?!#|data:)|@import|url\((?!#)|https?://", page) == []
    for text in (
        "2.33x as fast",
        "the loss is &lt;nan&gt;",
        "shrink-and-fine-tune",
        "-2.05 to -0.75<",
        "against control",
        "100 \N{MINUS SIGN} word error",
    ):
        assert text in page
    assert json.loads((tmp_path / "sweep.json").read_text())["failed"][0]["id"] == failure.id


def test_names_of_methods_are_text_on_the_page(tmp_path: Path) -> None:
    odd = [PointFigures(**{**vars(p), "method": "<b>$x^2$"}) for p in points()]
    write_report(report(odd), tmp_path)
    assert "<b>$x" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_one_seed_and_one_shape() -> None:
    alone = report(points()[:1])
    assert "data-tone" not in frontier_svg(alone)
    assert alone.shapes[0].quality.deviation is None
    assert alone.describe(alone.shapes[0]) == "4 of 6 decoder layers, 0% of the encoder cut"


def test_a_machine_with_other_work_is_said_so(tmp_path: Path) -> None:
    assert REPORT.warning is None
    busy = report(points(), busyness=6.9)
    assert busy.warning is not None
    assert "6.9 times as long" in busy.warning
    assert "--remeasure" in busy.warning
    write_report(busy, tmp_path)
    assert busy.document()["busyness"] == 6.9
    assert "6.9 times as long" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_validation_rows_select() -> None:
    """A shape that is best on the test rows only, by chance, is neither on the frontier nor the best."""
    lucky = measured({"phoneme_error_rate": 1.0, "word_error_rate": 4.0}, 1.4, 0.4, 4.0)
    slugs = {shape.shape.slug for shape in REPORT.shapes if shape not in REPORT.frontier}
    assert slugs, "every shape is on the frontier"
    made = [
        PointFigures(**{**vars(p), "measured": lucky}) if p.shape.slug in slugs and p.method == "CoFi" else p
        for p in points()
    ]
    found = report(made)
    assert [shape.points[0].id for shape in found.frontier] == [shape.points[0].id for shape in REPORT.frontier]
    assert found.best is not None
    assert REPORT.best is not None
    assert found.best.points[0].id == REPORT.best.points[0].id
