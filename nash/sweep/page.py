"""The files that a sweep writes: the JSON document, the picture, and a self-contained HTML page."""

import json
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nash.measuring.metrics import HEADLINE
from nash.page.theme import DARK_TONES, LIGHT
from nash.run.disk import full_disk_named
from nash.sweep.plot import DENSE_MARK, MARKS, frontier_png, frontier_svg
from nash.sweep.report import SweepReport, in_words

JSON_FILE, PNG_FILE, HTML_FILE = "sweep.json", "frontier.png", "report.html"
_ROOM_BYTES = 2_000_000  # a generous estimate for the three files


def write_report(report: SweepReport, folder: Path) -> None:
    """Write all three files, each whole or not at all.

    Raises:
        DiskFullError: there is no room for them.
    """
    files = {
        JSON_FILE: (json.dumps(report.document(), indent=2, allow_nan=False) + "\n").encode("ascii"),
        PNG_FILE: frontier_png(report),
        HTML_FILE: render(report).encode("utf-8"),
    }
    with full_disk_named(folder, _ROOM_BYTES):
        for name, content in files.items():
            partial = folder / f".{name}.partial"
            partial.write_bytes(content)
            partial.replace(folder / name)


def render(report: SweepReport) -> str:
    """The whole page."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("nash.sweep", ""), PackageLoader("nash.page", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = in_words
    marks = {method: MARKS[i % len(MARKS)][1] for i, method in enumerate(report.methods)}
    return environment.get_template("page.html.jinja").render(
        report=report,
        frontier=report.frontier,
        controlled=any(compared.control is not None for compared in report.compared.values()),
        best=report.best,
        light_tones=LIGHT.tones,
        dark_tones=DARK_TONES,
        tones={method: i % len(LIGHT.tones) for i, method in enumerate(report.methods)},
        marks=marks,
        dense_mark=DENSE_MARK[1],
        seeds=sorted({point.seed for point in report.points}),
        metrics=sorted(report.dense.metrics, key=lambda metric: metric != HEADLINE[report.metric]),
        # Safe: this program made it from numbers, and the methods' names are only in the page's own legend.
        picture=Markup(frontier_svg(report) + frontier_svg(report, narrow=True)),
    )
