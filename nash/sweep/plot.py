"""The frontier of quality and speed as a PNG, and as an SVG that takes its colours from the page around it."""

import io
from itertools import cycle

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nash.page.theme import LIGHT, STAND_INS, Palette, style, svg
from nash.sweep.frontier import Spread
from nash.sweep.report import SweepReport

# matplotlib's marks, and the characters that represent them in a text legend.
MARKS = (
    ("o", "\u25cf"),
    ("s", "\u25a0"),
    ("^", "\u25b2"),
    ("D", "\u25c6"),
    ("v", "\u25bc"),
    ("P", "\u271a"),
    ("X", "\u2716"),  # one more mark than tones, so that many methods still get different pairs of mark and tone
)
DENSE_MARK = ("*", "\u2605")


def frontier_png(report: SweepReport) -> bytes:
    """The picture by itself, with a title and a legend."""
    with mpl.rc_context(style(LIGHT)):
        figure, axes = _draw(report, LIGHT, (8.4, 5.2))
        axes.set_title(report.name, loc="left", fontsize=13, color=LIGHT.ink, weight="bold")
        frontier, dense, *methods = axes.get_lines()[0], axes.get_lines()[-1], *axes.containers
        legend = figure.legend(handles=[dense, *methods, frontier], loc="outside lower left", ncols=5)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a method's name is not a formula, and an invalid formula raises an error
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
        return buffer.getvalue()


def frontier_svg(report: SweepReport, *, narrow: bool = False) -> str:
    """The bare element for the page, which has its own legend; `narrow` is for phones.

    The wide and the narrow element have different ids, so that both fit in one page.
    """
    with mpl.rc_context(style(STAND_INS)):
        figure, _ = _draw(report, STAND_INS, (4.7, 4.7) if narrow else (8.4, 4.7))
        prefix = "narrow" if narrow else "wide"
        return svg(figure, "Quality against speed-up, and the frontier", prefix, f"{prefix}-plot")


def _draw(report: SweepReport, palette: Palette, inches: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot()
    line = [(shape.speedup.mean, shape.quality.mean) for shape in report.frontier]
    if report.dense_on_frontier:
        line = [(1.0, report.dense_quality), *line]
    axes.plot(
        *zip(*sorted(line), strict=True),
        color=palette.soft,
        linewidth=1.4,
        linestyle=(0, (4, 3)),
        zorder=1,
        label="frontier",
    )
    for method, tone, (mark, _) in zip(report.methods, cycle(palette.tones), cycle(MARKS), strict=False):
        shapes = [shape for shape in report.shapes if shape.method == method]
        axes.errorbar(
            [shape.speedup.mean for shape in shapes],
            [shape.quality.mean for shape in shapes],
            xerr=[[_error(shape.speedup) for shape in shapes]] * 2,
            yerr=[[_error(shape.quality) for shape in shapes]] * 2,
            fmt=mark,
            color=tone,
            markersize=7.5,
            markeredgecolor=palette.paper,
            markeredgewidth=0.8,
            elinewidth=1.3,
            capsize=2.5,
            zorder=3,
            label=method,
        )
    axes.plot(
        [1.0],
        [report.dense_quality],
        DENSE_MARK[0],
        color=palette.ink,
        markersize=13,
        markeredgecolor=palette.paper,
        markeredgewidth=0.8,
        zorder=4,
        label="dense",
        linestyle="none",
    )
    axes.set_xlabel("speed-up over the dense model")
    axes.set_ylabel(f"{report.quality_name}, %")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.margins(x=0.13, y=0.12)
    _name_frontier(figure, axes, report, palette)
    return figure, axes


def _error(spread: Spread) -> float:
    return spread.deviation or 0.0


def _name_frontier(figure: Figure, axes: Axes, report: SweepReport, palette: Palette) -> None:
    """Label the frontier's points with layers and cut, above and to the right, where no other point can be.

    A label that would cover another one is hidden; the tables have it. If all points have the same shape, there are no
    labels.
    """
    if len({shape.shape for shape in report.shapes}) == 1:
        return
    names = [
        axes.annotate(
            f"{shape.decoder_layers}L {shape.encoder_cut:.0%}",
            (shape.speedup.mean, shape.quality.mean),
            xytext=(7, 6),
            textcoords="offset points",
            fontsize=9.5,
            color=palette.soft,
        )
        for shape in report.frontier
    ]
    figure.draw_without_rendering()
    places = [name.get_window_extent() for name in names]
    for i, name in enumerate(names):
        name.set_visible(not any(names[k].get_visible() and places[i].overlaps(places[k]) for k in range(i)))
