"""Which device a run gets, on made-up machines; and that all of its stages get it."""

from pathlib import Path

import pytest

from nash import device
from nash.device import choose_device
from nash.errors import RequestError
from server.engine.machine.cuda import CudaDevice
from tests.nash.command_line import nash
from tests.nash.tiny_training import build_task_model

GPU = CudaDevice(name="G", major=9, minor=0)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(device, "cuda_devices", lambda: (GPU,) * request.param)
    monkeypatch.setattr("torch.cuda.is_available", lambda: request.param > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: request.param)


@pytest.mark.parametrize(
    ("gpus", "asked", "found"),
    [(0, "auto", "cpu"), (2, "auto", "cuda"), (2, "cpu", "cpu"), (2, "cuda:1", "cuda:1"), (1, "cuda", "cuda")],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_chosen(asked: str, found: str) -> None:
    assert choose_device(asked) == found


@pytest.mark.parametrize(
    ("gpus", "asked", "refusal"),
    [
        (2, "cuda:4", "device 'cuda:4' does not exist: this machine has 2, numbered from 0"),
        (0, "cuda", "device 'cuda' is not available on this machine: use 'cpu', or 'auto'"),
        (1, "tpu", "device 'tpu' is not known: use 'cpu', 'cuda' or 'cuda:1', or 'auto'"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_refused(asked: str, refusal: str) -> None:
    with pytest.raises(RequestError) as error:
        choose_device(asked)
    assert str(error.value) == refusal


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_each_process_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert choose_device("auto") == choose_device("cuda") == choose_device("cuda:1") == "cuda:1"
    with pytest.raises(RequestError, match="device 'cuda:0' is one GPU, but 4 processes were started"):
        choose_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RequestError, match="more processes were started here than the 2 CUDA devices"):
        choose_device("cuda")


def test_a_command_refuses_it_before_anything_is_made(tmp_path: Path) -> None:
    build_task_model(tmp_path / "dense", dropout=0.0)
    (tmp_path / "rows.jsonl").write_text('{"source": "ab", "target": "ba"}\n')
    rows = ["--train", tmp_path / "rows.jsonl", "--eval", tmp_path / "rows.jsonl"]
    run = ["--model", tmp_path / "dense", "--name", "n", *rows, "--out", tmp_path / "run", "--store", tmp_path / "s"]
    for command in (["prune", *run], ["evaluate", tmp_path / "dense", "--data", tmp_path / "rows.jsonl"]):
        outcome = nash(*command, "--device", "gpu")
        assert outcome.code == 2
        assert outcome.err == "error: device 'gpu' is not known: use 'cpu', 'cuda' or 'cuda:1', or 'auto'\n"
    assert not (tmp_path / "run").exists()
