"""The report's plots, as SVG that takes its colours and font from the page around it."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from loadtest.results.figures import Floats

# Plots are drawn in these colours, which nothing else uses. The page's variables then replace them, so that a plot
# follows the page's light and dark themes.
_INK, _SOFT, _RULE = "#010203", "#040506", "#070809"
_TONES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
_VARIABLES = {
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _RULE: "var(--rule)",
    **{tone: f"var(--tone-{i})" for i, tone in enumerate(_TONES)},
}
TONES = len(_TONES)
_CDF_POINTS = 400
_BINS = 150
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "nash",  # equal figures give equal bytes
    "font.family": "sans-serif",
    "font.size": 12.5,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "ytick.left": False,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """The answered requests of one variant."""

    name: str
    at_s: Floats  # when they were due, from the start of the measured time
    latency_ms: Floats


def distribution_plot(series: Sequence[Series]) -> str:
    """For each latency, the share of requests answered within it."""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes()
        for tone, each in zip(cycle(_TONES), series, strict=False):
            if len(each.latency_ms) == 0:
                continue
            # Evenly spaced shares, with the last hundredth in more detail: the log axis is there to show the tail.
            shares = np.concatenate([np.linspace(0, 99, _CDF_POINTS), np.linspace(99, 100, 101)[1:]])
            axes.plot(np.percentile(each.latency_ms, shares), shares, color=tone)
        axes.set_xscale("log")
        _log_ticks(axes.xaxis)
        axes.set_xlabel("latency, ms (log scale)")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0f} %"))
        axes.set_yticks([0, 25, 50, 75, 90, 100])
        axes.set_ylim(0, 101)
        return _svg(figure, "cdf", "Share of requests answered within each latency, by variant")


def timeline_plot(series: Sequence[Series], duration_s: float) -> str:
    """Median, 95th percentile and slowest request per second, or per longer bin in a long run."""
    bin_s = max(1.0, float(np.ceil(duration_s / _BINS)))
    with mpl.rc_context(_STYLE):
        figure, axes = _axes()
        for tone, each in zip(cycle(_TONES), series, strict=False):
            bins = np.floor(each.at_s / bin_s).astype(np.intp)
            filled = np.unique(bins)
            if len(filled) == 0:
                continue
            rows = [each.latency_ms[bins == i] for i in filled]
            middle = (filled + 0.5) * bin_s
            axes.plot(middle, [np.median(row) for row in rows], color=tone)
            axes.plot(middle, [np.percentile(row, 95) for row in rows], color=tone, linewidth=1, alpha=0.55)
            axes.plot(middle, [row.max() for row in rows], "o", color=tone, markersize=4, markeredgewidth=0, alpha=0.6)
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
        axes.set_xlim(0, max(duration_s, bin_s))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.set_xlabel(f"seconds from the end of the warm-up, bins of {bin_s:.0f} s")
        axes.set_ylabel("latency, ms (log scale)")
        return _svg(figure, "timeline", "Latency over the course of the run, by variant")


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.2, 3.5), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _log_ticks(axis: "mpl.axis.Axis") -> None:
    """Ticks at 1, 2, 5, 10, ..., since the data may span only one decade."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def _svg(figure: Figure, prefix: str, label: str) -> str:
    """The bare <svg> element, with ids prefixed so that two plots on one page do not share them."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    # A self-contained page must not name other hosts, even if nothing is fetched from them.
    svg = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
