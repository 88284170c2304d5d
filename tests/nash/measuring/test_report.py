"""The report of a run: the fields that scripts read, and the table that people read."""

import io
import json
from dataclasses import replace

from rich.console import Console

from nash.measuring.figures import Figures, Latency, MeasuredModel
from nash.measuring.latency import Speedup, Workload
from nash.measuring.report import Report


def side(total_ms: float, per: float) -> MeasuredModel:
    latency = Latency(encoder_ms=1.0, step_ms=0.5, total_ms=total_ms)
    figures = Figures(metrics={"phoneme_error_rate": per}, latency=latency)
    return MeasuredModel(figures=figures, parameters=2_000_000, bytes=8_000_000)


REPORT = Report(
    ref="g2p@pruned",
    digest="sha256:1",
    dense_ref="g2p@dense",
    n=60,
    workload=Workload(batch=1, source_tokens=9, new_tokens=7),
    speedup=Speedup(median=3.0, interval=(2.75, 3.125), quartiles=(2.5, 3.25)),
    decoder_layers=2,
    encoder_sparsity=0.31,
    dense_vocab_size=64,
    vocab_size=64,
    dense=side(12.0, 9.25),
    pruned=side(4.0, 9.5),
)


def test_document() -> None:
    document = json.loads(json.dumps(REPORT.document(), allow_nan=False))
    assert {"ref", "digest", "dense", "pruned", "speedup"} <= document.keys()
    assert document["speedup"] == 3.0
    assert (document["batch"], document["source_tokens"], document["new_tokens"]) == (1, 9, 7)
    assert document["speedup_interval"] == [2.75, 3.125]
    assert document["speedup_quartiles"] == [2.5, 3.25]
    assert not {"asked", "predicted", "measured"} & document.keys()
    fields = {"metrics", "parameters", "bytes", "encoder_ms", "step_ms", "total_ms"}
    assert document["dense"].keys() == document["pruned"].keys() == fields
    assert document["pruned"]["metrics"] == {"phoneme_error_rate": 9.5}


def test_an_asked_speed() -> None:
    report = replace(REPORT, asked=3.2, predicted=3.1)
    document = report.document()
    assert (document["asked"], document["predicted"], document["measured"]) == (3.2, 3.1, 3.0)
    text = " ".join(shown(report).split())
    assert "3.00x faster" in text
    assert "3.2 was asked for, 3.10 predicted" in text


def shown(report: Report) -> str:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as capture:
        console.print(report.table())
    return capture.get()


def test_table() -> None:
    text = shown(REPORT)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert ["total ms", "12.00", "4.00", "3.00x"] in rows
    assert ["phoneme error rate %", "9.25", "9.50", ""] in rows
    assert ["parameters (millions)", "2.00", "2.00", "1.00x"] in rows
    assert "g2p@pruned: 2 decoder layers, encoder 31% cut" in " ".join(text.split())
    text = " ".join(text.split())
    assert "60 test rows; latency of one request, 9 tokens in and 7 out, float32" in text
    assert "3.00x faster (95 % interval: 2.75 to 3.12)" in text
