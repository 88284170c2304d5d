"""The GPU's benchmark from end to end, in miniature on the CPU, and what it says of itself."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import marked_tests
from benchmarks.gpu.answers import engine_config
from benchmarks.gpu.random_engine import RandomTensors, used_buckets
from benchmarks.gpu.report import report
from benchmarks.gpu.shapes import FULL, MINIATURE, make_sources, step_weight_bytes
from benchmarks.gpu.staged import Recorder
from model_store.model.config import layout_of, spec_of
from server.engine.pytorch.backend import graph_buckets

ROOT = Path(__file__).parents[2]
NAMES = [stage.name for stage in gpu.STAGES]

# What a machine that has torch and safetensors alone lacks.
ABSENT = (
    *("fastapi", "starlette", "uvicorn", "pydantic", "msgspec", "prometheus_client", "typer", "rich", "accelerate"),
    *("bitsandbytes", "datasets", "scipy", "sklearn", "transformers", "tokenizers", "pytest"),
)


def check_without_packages(folder: Path, out: Path) -> str:
    """The whole check in a process that has next to nothing installed; what it prints."""
    lines = [
        "import sys",
        f"for name in {ABSENT!r}:",
        "    sys.modules[name] = None  # importing it raises ImportError",
    ]
    (folder / "sitecustomize.py").write_text("\n".join(lines), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "benchmarks.gpu", "--check", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a whole check prints, and its JSON."""
    folder = tmp_path_factory.mktemp("check")
    printed = check_without_packages(folder, folder / "gpu.json")
    return printed, json.loads((folder / "gpu.json").read_text())


def test_every_stage_is_measured_without_more_than_torch(checked: tuple[str, dict[str, Any]]) -> None:
    printed, document = checked
    stages = document["stages"]
    assert list(stages) == NAMES
    assert {
        name: (entry["status"], entry["reason"]) for name, entry in stages.items() if entry["status"] != "done"
    } == {
        "tests": ("not run", "pytest is not installed"),
        "training": ("not run", "tokenizers is not installed"),
    }
    assert not any(entry["failures"] for entry in stages.values())
    for name in NAMES:
        assert f"{name}: begins, at most " in printed
    assert document["key"]["miniature"]
    assert document["key"]["hardware"]["torch"] == torch.__version__
    assert {"date", "commit", "cpu", "cores", "memory_bytes", "python", "packages"} <= document["environment"].keys()
    assert document["workload"]["new_tokens"] == 8
    assert stages["machine"]["parts"]["versions"]["transformers"]


def test_the_parts_hold_what_tables_are_made_of(checked: tuple[str, dict[str, Any]]) -> None:
    parts = {name: entry["parts"] for name, entry in checked[1]["stages"].items()}
    for shape in ("flan-t5-xl", "bart-large"):
        assert list(parts[shape]) == ["load", "batch 4", "batch 2"]
        assert parts[shape]["load"]["graphs"] == 2
        for batch in (4, 2):
            row = parts[shape][f"batch {batch}"]
            assert row["batch"] == batch
            assert row["steps"] == row["graph_steps"] == 8
            assert row["encode_ms"] < row["total_ms"]
            assert row["tokens_per_s"] == pytest.approx(1e3 * batch * 8 / row["total_ms"])
            assert row["read_bytes"] > 8 * batch * row["source_tokens"]
    single = parts["t5-base"]
    assert (single["step, graphs on"]["graph_steps"], single["step, graphs off"]["graph_steps"]) == (8, 0)
    for graphs in ("on", "off"):
        kernels = single[f"kernels, graphs {graphs}"]
        assert kernels["us_per_step"] >= sum(row["us_per_step"] for row in kernels["table"]) > 0
        assert kernels["per_step"] > 20
    machine = parts["machine"]
    assert machine["copy"]["bytes_per_s"] > 0
    assert machine["product"]["flop_per_s"] > 0
    assert machine["launch"].keys() == {"eager_us", "graph_us"}
    assert len(machine["attention chosen"]) == 9
    operations = parts["operations"]
    assert {"us", "bytes_per_s"} == operations["cross, flan-t5-xl, batch 4, product"].keys()
    assert operations["flan-t5-xl, feed-forward in and gate as one, 128 rows"]["us"] > 0
    assert len(operations) == (2 + 4) * 4 + (5 + 6) * 5
    assert len(parts["encoder"]) == 1 + 2 * 2 * 3
    row = parts["encoder"]["batch 4, all at once, cuDNN off"]
    assert (row["groups"], row["padding"]) == (1, 4 * 16 - row["tokens"])
    memory = parts["memory"]
    assert len(memory) == 4
    assert memory["caches that do not fit"]["outcome"] == memory["caches that do not fit"]["expected"] == "LoadError"
    assert memory["a step that does not fit"]["same_tokens_after"]


def test_a_cpu_is_not_compared_with_a_gpu_and_a_gpu_is(checked: tuple[str, dict[str, Any]]) -> None:
    printed, document = checked
    table = printed[printed.index("batch        ms published") :]
    assert "TensorRT-LLM" not in table
    assert "tests        not run, 0 parts" in table
    document = json.loads(json.dumps(document))
    document["key"]["miniature"] = False
    xl = document["stages"]["flan-t5-xl"]["parts"]
    xl["batch 32"] = xl.pop("batch 4") | {"batch": 32, "total_ms": 353.0, "tokens_per_s": 6624.0, "read_bytes": 10**12}
    document["stages"]["machine"]["parts"]["copy"]["bytes_per_s"] = 4e12
    lines = report(document, NAMES).splitlines()
    row = next(line for line in lines if line.startswith("flan-t5-xl      32"))
    assert row.split() == ["flan-t5-xl", "32", "353.0", "706", "0.50", "6624", "3312", "3153", "2.00", "71%"]
    assert "memory, an encoder that does not fit: nothing happened, expected was LoadError" in lines
    assert any("Target: 0.7 of its time" in line for line in lines)


MADE_UP_TESTS = """
import pytest

gpu = pytest.mark.gpu

@gpu
@pytest.mark.parametrize("number", [1, 2, 3])
def test_some(number):
    assert number != 2, "a two"

@gpu
@pytest.mark.skip(reason="needs more")
def test_other(): ...

def test_without_the_mark():
    raise AssertionError
"""


def test_the_marked_tests_of_a_file_are_run_and_counted(tmp_path: Path) -> None:
    (tmp_path / "test_made_up.py").write_text(MADE_UP_TESTS, encoding="utf-8")
    sent: list[Any] = []
    record = Recorder(sent.append, set(), time.monotonic() + 60)
    counts = marked_tests.run_file(record, MINIATURE, tmp_path / "test_made_up.py")
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (2, 1, 1)
    assert counts["seconds"].keys() == {"test_some[1]", "test_some[2]", "test_some[3]", "test_other"}
    assert "a two" in counts["said"]["test_some[2]"]
    assert "needs more" in counts["said"]["test_other"]
    assert sent == [("line", "test_made_up.py: 2 passed, 1 failed, 1 skipped")]
    (tmp_path / "test_made_up.py").write_text("import no_such_package", encoding="utf-8")
    counts = marked_tests.run_file(record, MINIATURE, tmp_path / "test_made_up.py")
    assert (counts["passed"], counts["failed"]) == (0, 1)
    assert "no_such_package" in str(counts["said"])


def test_the_marked_tests_are_found() -> None:
    files = [str(path.relative_to(ROOT)) for path in marked_tests.find()]
    assert files == [
        *(f"tests/engine/pytorch/test_{name}.py" for name in ("bitsandbytes_matrix", "float16", "static_step")),
        "tests/nash/training/test_devices.py",
    ]


def test_nine_graphs_of_seventy_two_are_recorded() -> None:
    spec = spec_of(FULL.shapes["flan-t5-xl"])
    config = engine_config(FULL, slots=128, graphs="on")
    longest = {n: max(map(len, make_sources(spec, n, FULL.source_tokens))) for n in FULL.batches}
    buckets = used_buckets(config, longest, FULL.new_tokens)
    assert len(graph_buckets(config)) == 72
    assert [(b.rows, b.target_positions, b.source_positions) for b in buckets] == [
        (rows, target, 440) for rows in (128, 64, 32) for target in (128, 64, 32)
    ]


@pytest.mark.parametrize("shape", FULL.shapes)
def test_weights_made_on_the_device_are_finite_and_the_same_each_time(shape: str) -> None:
    spec = spec_of(MINIATURE.shapes[shape])
    tensors = RandomTensors(spec, dtype=torch.float32, device=torch.device("cpu"))
    for name, size in layout_of(spec).shapes():
        first, second = tensors.read(name), tensors.read(name)
        assert tuple(first.shape) == size
        assert first.isfinite().all()
        assert torch.equal(first, second)
        assert first.data_ptr() != second.data_ptr()
    assert "no such tensor" not in tensors


def test_the_shapes_are_the_published_ones() -> None:
    counts = {}
    for name, config in FULL.shapes.items():
        shapes = dict(layout_of(spec_of(config)).shapes())
        counts[name] = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert {name: round(count / 1e6) for name, count in counts.items()} == {
        "flan-t5-xl": 2784,  # of 2850; the output matrix, its own in the original, is made from the embedding
        "bart-large": 406,
        "t5-base": 223,
        "t5-small": 61,
    }
    # 24 layers of four square matrices of self-attention, two of cross-attention, three of 2048 by 5120; the output.
    xl = spec_of(FULL.shapes["flan-t5-xl"])
    assert step_weight_bytes(xl) == 2 * (24 * (6 * 2048**2 + 3 * 2048 * 5120) + 2048 * 32128)


def test_the_stages_fit_into_ten_minutes() -> None:
    assert sum(stage.seconds for stage in gpu.STAGES) + gpu._PROBE.seconds <= 570


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out is missing: name the JSON that is written after each part"),
        (["--check", "--minutes", "0"], "--minutes is 0: it must be above 0"),
        (["--out", "/nowhere/gpu.json"], "--out /nowhere/gpu.json: there is no folder /nowhere"),
        (["--check", "--stages", "tea"], "invalid choice: 'tea'"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_it_says_what_can_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--out", str(tmp_path / "gpu.json")])
    assert stop.value.code == 2
    assert "no CUDA device is here: use --check" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()
