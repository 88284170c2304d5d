"""The peers' benchmark with a peer that needs no library: the protocol, the turns, the file, the tables."""

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers import __main__ as command
from benchmarks.peers import environments, measure, models, report
from benchmarks.peers.catalogue import INSTRUCTION_SETS, NAMED, PEERS, SHAPE_TITLES, Peer, variables
from benchmarks.peers.measure import Places, Plan, Results, Selection
from benchmarks.peers.protocol import PeerError, Process
from benchmarks.peers.timing import timed
from docs.marked import rewritten
from model_store.model.config import layout_of, spec_of
from model_store.model.spec import ModelSpec

FAKE = "tests.benchmarks.fake_peer"
PLAN = Plan(source_tokens=3, new_tokens=4, settle_s=0.0)


class FakePeer(Peer):
    """Of this environment, so that nothing is installed."""

    @property
    def module(self) -> str:
        return FAKE


def fake(name: str, *dtypes: str) -> FakePeer:
    return FakePeer(name=name, title=name, environment=None, dtypes={dtype: dtype for dtype in dtypes})


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    with Process(FAKE, log=tmp_path / "log") as running:
        yield running


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(environments=tmp_path / "environments", cache=tmp_path / "cache")


def test_a_worker_prepares_loads_and_runs(process: Process, tmp_path: Path) -> None:
    arguments = {"model": "nowhere", "made": str(tmp_path / "fake" / "int8"), "dtype": "int8"}
    assert process.ask("prepare", timeout_s=30, **arguments) == {}
    for threads in (1, 2):
        versions = process.ask("load", timeout_s=30, threads=threads, **arguments)["versions"]
        assert versions["pip"][0].isdigit()
        assert versions["a-package-that-nobody-has"] == "unknown"
    answers = [
        process.ask("run", timeout_s=30, threads=threads, sources=[[1, 5], [2, 8]], new_tokens=3) for threads in (1, 2)
    ]
    for answer in answers:
        assert answer["tokens"] == [[6, 7, 8], [9, 10, 11]]
        assert answer["step_ms"] == pytest.approx((answer["total_ms"] - answer["first_ms"]) / 2)
    assert answers[0]["total_ms"] >= 12.0  # it sleeps so long
    assert "generating" in (tmp_path / "log").read_text(encoding="utf-8")  # what it prints is no answer


def test_what_a_peer_raises_is_one_line(process: Process, tmp_path: Path) -> None:
    arguments = {"model": "nowhere", "made": str(tmp_path / "made"), "dtype": "int4"}
    with pytest.raises(PeerError, match=r"^ValueError: no int4 here$"):
        process.ask("prepare", timeout_s=30, **arguments)
    assert not (tmp_path / "made").exists()
    process.ask("prepare", timeout_s=30, **{**arguments, "dtype": "int8"})  # it lives on


def test_a_peer_that_dies_or_hangs_is_named(tmp_path: Path) -> None:
    arguments = {"model": "nowhere", "made": str(tmp_path / "made"), "dtype": "int8"}
    with Process(FAKE, log=tmp_path / "log") as process:
        process.ask("prepare", timeout_s=30, **arguments)
        process.ask("load", timeout_s=30, threads=1, **arguments)
        with pytest.raises(PeerError, match=r"its process ended with 7: generating"):
            process.ask("run", timeout_s=30, threads=1, sources=[[99]], new_tokens=1)
        with pytest.raises(PeerError, match="its process ended with 7"):
            process.ask("load", timeout_s=30, threads=2, **arguments)
    with Process(FAKE, log=tmp_path / "log") as process:
        process.ask("load", timeout_s=30, threads=1, **arguments)
        with pytest.raises(PeerError, match="no answer to 'run' in 0 s"):
            process.ask("run", timeout_s=0.2, threads=1, sources=[[1]], new_tokens=1000)


def test_a_step_is_what_further_tokens_cost() -> None:
    def generate(tokens: int) -> int:
        time.sleep(0.02 + 0.01 * tokens)
        return tokens

    timing, made = timed(generate, 5)
    assert made == 5
    assert timing.first_ms == pytest.approx(30, abs=8)
    assert timing.step_ms == pytest.approx(10, abs=4)


def test_tokens_count_until_the_first_difference() -> None:
    assert measure.prefix_share([[1, 2, 3, 4], [1, 2, 9, 4]], [[1, 2, 3, 4], [1, 2, 3, 4]]) == 0.75
    measure.check_lengths([[1, 2], [3, 4]], 2, 2)
    with pytest.raises(PeerError, match=r"made 2 answers of \[1, 2\] tokens where 2 of 2 were asked for"):
        measure.check_lengths([[1, 2], [3]], 2, 2)


def race(tmp_path: Path, sources: list[list[int]], **changes: Any) -> list[dict[str, Any]]:
    plan = dataclasses.replace(PLAN, **changes)
    peers = [fake("a", "int8"), fake("b", "int8")]
    with ExitStack() as stack:
        contenders = []
        for peer in peers:
            made = tmp_path / peer.name
            process = stack.enter_context(Process(FAKE, log=tmp_path / "log"))
            arguments = {"model": "nowhere", "made": str(made), "dtype": "int8"}
            process.ask("prepare", timeout_s=30, **arguments)
            for threads in plan.threads:
                process.ask("load", timeout_s=30, threads=threads, **arguments)
                contenders.append(measure.Contender(peer, threads, process))
        wanted = [[source[-1] + 1 + i for i in range(plan.new_tokens)] for source in sources]
        return measure.Turns(contenders, "int8", sources, wanted, plan).run(rounds=3, longest_s=5.0)


def test_the_better_number_of_threads_is_taken_and_named(tmp_path: Path) -> None:
    rows = race(tmp_path, [[1, 2, 3], [4, 5, 6]], new_tokens=20)
    assert [row["peer"] for row in rows] == ["a", "b"]
    for row in rows:
        assert (row["threads"], row["rounds"], row["agreement"]) == (2, 3, 1.0)
        assert row["other_threads_total_ms"]["1"] > 1.25 * row["total_ms"]
        assert row["total_ms"] == pytest.approx(sorted(row["total_ms_rounds"])[1], abs=0.001)
        assert row["first_ms"] + 19 * row["step_ms"] == pytest.approx(row["total_ms"], rel=0.3)


def test_short_answers_are_an_error_and_no_figure(tmp_path: Path) -> None:
    for row in race(tmp_path, [[13, 2, 3]]):
        assert row["error"] == "made 1 answers of [3] tokens where 1 of 4 were asked for"
        assert "total_ms" not in row


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, places: Places) -> models.Shape:
    """A shape whose model is never built, with references that the fake peer repeats."""
    shape = models.SHAPES["t5-small"]
    (places.cache / shape.name / "model").mkdir(parents=True)
    tokens = [[source[-1] + 1 + i for i in range(4)] for source in shape.sources(2, 3)]
    (places.cache / shape.name / "tokens-3-4.json").write_text(json.dumps(tokens), encoding="utf-8")
    return shape


def test_a_run_goes_on_where_it_was_left(tiny: models.Shape, places: Places, tmp_path: Path) -> None:
    out = tmp_path / "results" / "peers.json"
    selection = Selection(
        shapes=(tiny,),
        dtypes=("float32", "int8", "int4"),
        batches=(1, 2),
        peers=(fake("engine", "float32", "int8"), fake("openvino", "int8", "int4")),
        rounds=1,
    )

    def go(said: list[str], stop_after_s: float = float("inf")) -> int:
        part = dataclasses.replace(selection, stop_after_s=stop_after_s)
        return measure.run(part, places, PLAN, Results(out, PLAN), said.append)

    assert go([], stop_after_s=-1.0) == 6
    assert not out.exists()
    said: list[str] = []
    assert go(said) == 0
    document = json.loads(out.read_text(encoding="utf-8"))
    blocks = {(block["dtype"], block["batch"]): block["rows"] for block in document["blocks"]}
    assert list(blocks) == [(dtype, batch) for dtype in ("float32", "int8", "int4") for batch in (1, 2)]
    assert [row["peer"] for row in blocks["int8", 2]] == ["engine", "openvino"]
    assert all(row["agreement"] == 1.0 for row in blocks["int8", 2])
    assert blocks["int4", 1] == [{"peer": "openvino", "precision": "int4", "error": "ValueError: no int4 here"}]
    assert document["versions"]["engine"]["pip"]
    # What is there is not measured again; what is missing is, and nothing else.
    assert go(said := []) == 0
    assert said == []
    document["blocks"] = [block for block in document["blocks"] if (block["dtype"], block["batch"]) != ("int8", 1)]
    out.write_text(json.dumps(document), encoding="utf-8")
    assert go(said) == 0
    assert [line for line in said if "batch" in line] == [next(line for line in said if "int8, batch 1" in line)]
    assert len(json.loads(out.read_text(encoding="utf-8"))["blocks"]) == 6
    assert not list(out.parent.glob("*.partial"))


def test_figures_of_another_plan_or_processor_are_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "peers.json"
    assert Results(out, PLAN).document["exempt"] == {}
    assert "onnxruntime" in Results(out, dataclasses.replace(PLAN, instruction_set="avx2")).document["exempt"]
    results = Results(out, PLAN)
    results.add("t5-small", "int8", 1, [{"peer": "engine", "precision": "int8", "error": "none"}], {})
    assert Results(out, PLAN).is_done("t5-small", "int8", 1, ["engine"])
    assert not Results(out, PLAN).is_done("t5-small", "int8", 1, ["engine", "openvino"])
    with pytest.raises(ValueError, match="has another plan"):
        Results(out, dataclasses.replace(PLAN, instruction_set="avx2"))
    document = json.loads(out.read_text(encoding="utf-8"))
    document["environment"]["cpu"] = "another one"
    out.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match="has another processor, another one: give another --out, or remove it"):
        Results(out, PLAN)


def test_a_peer_that_is_not_installed_is_a_row(tiny: models.Shape, places: Places, tmp_path: Path) -> None:
    out = tmp_path / "peers.json"
    selection = Selection(
        shapes=(tiny,), dtypes=("int8",), batches=(1,), peers=(NAMED["llama.cpp"], fake("engine", "int8")), rounds=1
    )
    plan = dataclasses.replace(PLAN, instruction_set="avx2")
    assert measure.run(selection, places, plan, Results(out, plan), lambda line: None) == 0
    [block] = json.loads(out.read_text(encoding="utf-8"))["blocks"]
    missing, ours = block["rows"]
    assert missing["error"].startswith("not installed: python -m benchmarks.peers install llama.cpp-avx2 --into")
    assert ours["agreement"] == 1.0


def row(peer: str, total_ms: float, step_ms: float, **changes: Any) -> dict[str, Any]:
    figures = {"threads": 2, "first_ms": 5.0, "step_ms": step_ms, "total_ms": total_ms, "agreement": 1.0}
    return {"peer": peer, "precision": "int8", "rounds": 3, **figures, **changes}


DOCUMENT: dict[str, Any] = {
    "environment": {"cpu": "a processor (avx2)", "cores": 2},
    "plan": {"instruction_set": "avx2", "threads": [1, 2], "source_tokens": 64, "new_tokens": 64},
    "exempt": {"onnxruntime": "has no switch"},
    "versions": {"engine": {"torch": "2"}, "onnxruntime": {"onnxruntime": "1.32.0"}},
    "blocks": [
        {
            "shape": "t5-small",
            "dtype": "int8",
            "batch": 8,
            "commit": "abc",
            "date": "today",
            "rows": [
                row("engine", 100.0, 2.0),
                row("openvino", 90.0, 2.5),
                {"peer": "llama.cpp", "precision": "Q8_0", "error": "ValueError: it cannot"},
            ],
        },
        {
            "shape": "t5-small",
            "dtype": "float32",
            "batch": 1,
            "commit": "abc",
            "date": "today",
            "rows": [row("engine", 50.0, 1.0, threads=1), row("onnxruntime", 80.4, 1.5, agreement=0.5)],
        },
    ],
}


def test_the_table_has_a_line_for_each_peer_and_says_who_did_not_run() -> None:
    assert report.shape_table(DOCUMENT, "t5-small").splitlines() == [
        "| first token / step / whole answer, ms | batch 1 | batch 8 |",
        "|---|---|---|",
        "| this engine, int8 (float32) | 5.0 / 1.00 / **50** |  |",
        "| ONNX Runtime, int8 (float32) | 5.0 / 1.50 / 80 (2T) |  |",
        "| this engine, int8 |  | 5.0 / 2.00 / 100 (2T) |",
        "| OpenVINO, int8 |  | 5.0 / 2.50 / **90** (2T) |",
        "| llama.cpp, Q8_0 (int8) |  | did not run |",
    ]
    text = report.section([DOCUMENT])
    assert "of 2 comparisons: OpenVINO (T5-small, int8, batch 8: whole answers 1.11x)." in text
    assert "ONNX Runtime has no switch." in text
    assert "fewer than 90% were repeated by ONNX Runtime (T5-small in float32, batch 1: 50%)" in text
    assert "llama.cpp did not run T5-small in int8: `ValueError: it cannot`" in text
    assert "commit abc" in text


def test_where_nobody_is_ahead_it_says_so() -> None:
    document = {**DOCUMENT, "blocks": DOCUMENT["blocks"][1:]}
    assert report.ahead(document) == "Faster than the engine in the same precision, of 1 comparisons: nobody."


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    report.draw(DOCUMENT, tmp_path / "docs" / "peers.png")
    assert (tmp_path / "docs" / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_written_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    page = tmp_path / report.PAGE
    page.parent.mkdir()
    page.write_text("no marks\n", encoding="utf-8")
    assert command.main(["table"]) == 1
    assert "no peers.json" in capsys.readouterr().err
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "peers.json").write_text(json.dumps(DOCUMENT), encoding="utf-8")
    assert command.main(["table"]) == 1
    assert "there are no lines <!-- peers:begin --> and <!-- peers:end -->" in capsys.readouterr().err
    page.write_text("before\n<!-- peers:begin -->\n<!-- peers:end -->\nafter\n", encoding="utf-8")
    assert command.main(["table", "--check"]) == 1
    assert command.main(["table"]) == 0
    assert command.main(["table", "--check"]) == 0
    text = page.read_text(encoding="utf-8")
    assert text == rewritten(text, {"peers": lambda: report.section([DOCUMENT])})
    page.write_text(text.replace("100 (2T)", "10 (2T)"), encoding="utf-8")
    assert command.main(["table", "--check"]) == 1


def test_wrong_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["install", "onnx", "--into", str(tmp_path)], "no environment 'onnx'"),
        (["run", "--environments", str(tmp_path), "--shape", "t5"], "invalid choice: 't5'"),
        (["run", "--environments", str(tmp_path), "--batch", "0"], "--batch, --threads and --rounds are 1 or more"),
    ):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_environments_are_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    class Done:
        returncode, stderr, stdout = 0, "", ""

    def note(command: list[str], **_: Any) -> Done:
        ran.append(command)
        (tmp_path / "openvino").mkdir(exist_ok=True)
        return Done()

    monkeypatch.setattr("benchmarks.peers.environments.subprocess.run", note)
    monkeypatch.setenv("TORCH_INDEX_URL", "https://wheels.invalid/cpu")
    assert environments.install(tmp_path, ["openvino"]) == {}
    assert [command[-1] for command in ran] == [str(tmp_path / "openvino"), "torch==2.13.0", ran[2][-1], "torchvision"]
    assert environments.is_installed(tmp_path, "openvino")
    assert environments.install(tmp_path, ["openvino"]) == {}
    assert len(ran) == 4
    (tmp_path / "openvino" / environments.FINISHED).write_text("optimum-intel==1\n", encoding="utf-8")
    assert not environments.is_installed(tmp_path, "openvino")
    Done.returncode, Done.stderr = 1, "much\nno such version\n"
    assert environments.install(tmp_path, ["openvino"]) == {"openvino": "no such version"}
    assert not environments.is_installed(tmp_path, "openvino")


def test_llama_cpp_is_built_once_for_each_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NASH_CPU_ISA", raising=False)
    for name in INSTRUCTION_SETS:
        environment = "llama.cpp" if name == "native" else f"llama.cpp-{name}"
        assert "CMAKE_ARGS" in environments.ENVIRONMENTS[environment].variables
    assert variables("avx2")["CT2_FORCE_CPU_ISA"] == "AVX2"
    assert variables("avx2")["NASH_CPU_ISA"] == "avx2"
    assert "NASH_CPU_ISA" not in variables("native")


def test_the_shapes_are_what_they_are_called() -> None:
    assert list(models.SHAPES) == list(SHAPE_TITLES)
    for name, parameters in (("t5-small", 60_506_624), ("t5-base", 222_903_552), ("bart-base", 139_420_416)):
        assert counted(spec_of(models.SHAPES[name].config.to_dict())) == parameters  # as published
    marian = models.SHAPES["marian"].config
    assert (marian.vocab_size, marian.d_model, marian.encoder_layers, marian.decoder_layers) == (65001, 512, 6, 6)
    sources = models.SHAPES["marian"].sources(4, 16)
    assert models.SHAPES["marian"].sources(2, 16) == sources[:2]
    assert not {0, 1, 65000} & {token for source in sources for token in source}


def counted(spec: ModelSpec) -> int:
    return sum(torch.Size(shape).numel() for _, shape in layout_of(spec).shapes())


def test_every_dtype_of_every_peer_has_an_adapter() -> None:
    for peer in PEERS:
        adapter = __import__(peer.module, fromlist=["load"])
        assert adapter.PACKAGES
        assert callable(adapter.load)
        assert callable(adapter.prepare)
