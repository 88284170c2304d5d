"""The report of a run: the fields that scripts read, and the table that people read."""

import io
import json

from rich.console import Console

from nash.latency import Workload
from nash.report import Report, Side


def side(total_ms: float, per: float) -> Side:
    return Side(
        metrics={"phoneme_error_rate": per},
        parameters=2_000_000,
        bytes=8_000_000,
        encoder_ms=1.0,
        step_ms=0.5,
        total_ms=total_ms,
    )


REPORT = Report(
    ref="g2p@pruned",
    digest="sha256:1",
    dense_ref="g2p@dense",
    n=60,
    workload=Workload(batch=1, source_tokens=9, new_tokens=7),
    speedup_quartiles=[2.5, 3.25],
    decoder_layers=2,
    encoder_sparsity=0.31,
    dense=side(12.0, 9.25),
    pruned=side(4.0, 9.5),
)


def test_document() -> None:
    document = json.loads(json.dumps(REPORT.document(), allow_nan=False))
    assert {"ref", "digest", "dense", "pruned", "speedup"} <= document.keys()
    assert document["speedup"] == 3.0
    fields = {"metrics", "parameters", "bytes", "encoder_ms", "step_ms", "total_ms"}
    assert document["dense"].keys() == document["pruned"].keys() == fields
    assert document["pruned"]["metrics"] == {"phoneme_error_rate": 9.5}


def test_table() -> None:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as capture:
        console.print(REPORT.table())
    text = capture.get()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert ["total ms", "12.00", "4.00", "3.00x"] in rows
    assert ["phoneme error rate %", "9.25", "9.50", ""] in rows
    assert ["parameters (millions)", "2.00", "2.00", "1.00x"] in rows
    assert "g2p@pruned: 2 decoder layers, encoder 31% cut" in " ".join(text.split())
    assert "60 test rows" in text
