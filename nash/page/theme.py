"""The colours of the pages, and charts as SVG that take theirs from the page around them."""

import io
import re
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Palette:
    """The colours of one picture."""

    ink: str
    soft: str
    rule: str
    paper: str
    tones: tuple[str, ...]  # of the series, in their order


# The page's light theme, for the PNG: opaque, so that it is legible on any background.
LIGHT = Palette(
    ink="#1b1d1f",
    soft="#5c6268",
    rule="#dfdcd4",
    paper="#fffefb",
    tones=("#0a7d5a", "#b4531a", "#6d4bc3", "#1f6fb2", "#b02a6b", "#7a6a00"),
)
DARK_TONES = ("#3fc795", "#f0955a", "#ab94f5", "#6fb4ee", "#f07fb4", "#d3c14a")
# Unique placeholder colours. In the SVG they become the page's variables, so that it follows the light or dark theme.
STAND_INS = Palette(
    ink="#010203",
    soft="#040506",
    rule="#070809",
    paper="#0c0d0e",
    tones=("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06"),
)
_VARIABLES = {
    STAND_INS.ink: "var(--ink)",
    STAND_INS.soft: "var(--soft)",
    STAND_INS.rule: "var(--rule)",
    STAND_INS.paper: "var(--surface)",
    **{tone: f"var(--tone-{i})" for i, tone in enumerate(STAND_INS.tones)},
}


def svg(figure: Figure, label: str, prefix: str, css_class: str) -> str:
    """The bare element of a figure that is drawn in `STAND_INS`; its ids begin with the prefix, one of a page's own."""
    figure.patch.set_alpha(0)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="', f' id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    # A self-contained page should not name other hosts, even if nothing is fetched from them.
    text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", text).replace("xlink:href", "href")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}" class="{css_class}"', 1)


def style(palette: Palette) -> dict[Any, Any]:
    """matplotlib's settings for a picture in these colours."""
    return {
        "svg.fonttype": "none",  # keep text as text
        "svg.hashsalt": "nash",  # equal figures give equal bytes
        "font.family": "sans-serif",
        "font.size": 10.5,
        "text.color": palette.ink,
        "figure.facecolor": palette.paper,
        "axes.facecolor": "none",
        "axes.edgecolor": palette.rule,
        "axes.labelcolor": palette.soft,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": palette.rule,
        "grid.linewidth": 0.8,
        "xtick.color": palette.rule,
        "ytick.color": palette.rule,
        "xtick.labelcolor": palette.soft,
        "ytick.labelcolor": palette.soft,
        "ytick.left": False,
        "legend.frameon": False,
    }
