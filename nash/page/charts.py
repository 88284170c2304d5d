"""The charts of a run's page: figures over steps, and what is cut of each sublayer over steps."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nash.page.theme import STAND_INS, style, svg

T = TypeVar("T")
Points = Sequence[tuple[float, float]]  # (step, value)

_INCHES = (4.7, 2.7)  # two beside each other on a screen, one on a phone
# Fixed: a layout that is searched for takes twice the time.
_MARGINS = {"left": 0.17, "right": 0.98, "bottom": 0.17, "top": 0.96}
_MOST_POINTS = 400  # of a line: more cannot be seen
_MOST_MOMENTS = 60  # of the picture of cuts


def lines(series: Mapping[str, Points], label: str, prefix: str) -> str:
    """Lines over steps as an SVG element, in the tones of the theme in their order; no legend."""
    return _lines(tuple(tuple(points) for points in series.values()), label, prefix)


@lru_cache(maxsize=64)  # a page is written many times, and most of its charts are of phases that have ended
def _lines(series: tuple[tuple[tuple[float, float], ...], ...], label: str, prefix: str) -> str:
    with mpl.rc_context(style(STAND_INS)):
        figure = Figure(figsize=_INCHES)
        figure.subplots_adjust(**_MARGINS)
        axes = figure.add_subplot()
        for tone, points in zip(STAND_INS.tones, series, strict=False):
            shown = thinned(points, _MOST_POINTS)
            marker = "o" if len(points) < 30 else ""
            axes.plot(*zip(*shown, strict=True), color=tone, linewidth=1.6, marker=marker, markersize=3.5)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))  # of a length that fits
        axes.margins(x=0.02, y=0.1)
        return svg(figure, label, prefix, "plot")


def cut_over_time(entries: Sequence[Mapping[str, float]], mark: str) -> tuple[list[int], dict[str, list[float]]]:
    """Steps, and for each sublayer the share cut at each of them; `mark` stands before a sublayer's name in the log."""
    logged = thinned([entry for entry in entries if any(key.startswith(mark) for key in entry)], _MOST_MOMENTS)
    names = [key for key in logged[-1] if key.startswith(mark)] if logged else []
    names.sort(key=lambda name: [int(part) if part.isdecimal() else 0 for part in name.split(".")])  # layer by layer
    names.sort(key=lambda name: name.removeprefix(mark).partition(".")[0] != "encoder")
    by_name = {name.removeprefix(mark): [entry[name] for entry in logged] for name in names}
    return [int(entry["step"]) for entry in logged], by_name


def thinned(values: Sequence[T], most: int) -> list[T]:
    """At most this many of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
