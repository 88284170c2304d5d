"""Which precision training takes, on this and on made-up machines."""

from pathlib import Path

import pytest

from model_store.store import Store
from nash import precision
from nash.errors import RequestError
from nash.precision import check_precisions, choose_precision
from nash.run.folder import PRECISION, RunFolder
from server.engine.machine import cpus
from server.engine.machine.cuda import CudaDevice
from tests.nash.command_line import nash
from tests.nash.tiny_training import build_task_model, task_rows

AVX2 = ("avx2", "fma", "f16c")


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without bfloat16, and no GPU."""
    monkeypatch.setattr(cpus, "instruction_sets", lambda: AVX2)


@pytest.mark.parametrize(
    ("sets", "chosen"),
    [
        (AVX2, "float32"),
        (("avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"), "float32"),  # it would be imitated
        (("avx2", "avx512f", "avx512_bf16"), "bfloat16"),
        (("avx2", "amx_tile", "amx_bf16"), "bfloat16"),
        (("asimd", "asimddp"), "float32"),
        (("asimd", "bf16"), "bfloat16"),
        ((), "float32"),
    ],
)
def test_auto_on_a_cpu(monkeypatch: pytest.MonkeyPatch, sets: tuple[str, ...], chosen: str) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(cpus, "instruction_sets", lambda: sets)
    assert choose_precision("auto", "cpu").precision == chosen


@pytest.mark.parametrize(("major", "chosen"), [(7, "float32"), (8, "bfloat16"), (9, "bfloat16")])
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch, major: int, chosen: str) -> None:
    monkeypatch.setattr(precision, "cuda_devices", lambda: (CudaDevice(name="G", major=major, minor=5),))
    choice = choose_precision("auto", "cuda")
    assert choice.precision == chosen
    assert choice.why == (
        "the hardware has it" if major >= 8 else "no bfloat16: it needs compute capability 8.0, and G has 7.5"
    )


@pytest.mark.usefixtures("avx2")
def test_by_name_it_is_refused_where_it_would_be_imitated() -> None:
    assert choose_precision("float32", "cpu").why == "asked for"
    check_precisions(["auto", "float32"], "cpu")
    with pytest.raises(RequestError) as refusal:
        check_precisions(["auto", "bfloat16"], "cpu")
    assert str(refusal.value) == (
        'precision "bfloat16" is not possible here: it needs avx512_bf16, amx_bf16 or ARM\'s bf16, but PyTorch may use '
        'avx2, fma, f16c; use "auto" or "float32"'
    )


def test_a_phase_that_goes_on_elsewhere_has_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder(tmp_path / "run", {}, {}) as run:
        for obstacle in (None, None, "none here", "none here"):
            monkeypatch.setattr(precision, "bfloat16_obstacle", lambda device, found=obstacle: found)
            run.note_precision("final_training", choose_precision("auto", "cpu"))
        run.note_precision("prune_training", choose_precision("float32", "cpu"))
        assert run.read_json(PRECISION) == {
            "final_training": "bfloat16, then float32",
            "prune_training": "float32",
        }


RECIPE = """
model = "./dense"
name = "reverse"
publish_slower = true
[data]
train = "rows.jsonl"
validation = "rows.jsonl"
max_source_tokens = 16
max_target_tokens = 16
[pruning]
encoder_sparsity = 0.3
decoder_layers = 1
[prune_training]
validation_rows = 0
max_steps = 1
[final_training]
validation_rows = 0
max_steps = 1
precision = "PRECISION"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    build_task_model(folder / "dense", dropout=0.1)
    rows = (f'{{"source": "{row.source}", "target": "{row.targets[0]}"}}\n' for row in task_rows(12))
    (folder / "rows.jsonl").write_text("".join(rows))
    for each in ("auto", "bfloat16"):
        (folder / f"{each}.toml").write_text(RECIPE.replace("PRECISION", each))
    return folder


@pytest.mark.usefixtures("avx2")
def test_a_run_says_what_it_takes_and_its_lineage_keeps_it(folder: Path, tmp_path: Path) -> None:
    arguments = ["--out", tmp_path / "run", "--store", tmp_path / "store", "--json"]
    outcome = nash("prune", folder / "auto.toml", *arguments)
    outcome.document()
    for phase in ("prune", "final"):
        assert f"{phase}: training on cpu in float32 (no bfloat16: it needs avx512_bf16" in outcome.err
    lineage = Store(tmp_path / "store").resolve("reverse@pruned").manifest.lineage
    assert lineage.precision == {"prune_training": "float32", "final_training": "float32"}
    asked = lineage.recipe["final_training"]
    assert isinstance(asked, dict)
    assert asked["precision"] == "auto"


@pytest.mark.usefixtures("avx2")
def test_a_run_that_asks_for_it_is_refused_before_anything_is_made(folder: Path, tmp_path: Path) -> None:
    outcome = nash("prune", folder / "bfloat16.toml", "--out", tmp_path / "run", "--store", tmp_path / "store")
    assert outcome.code == 2
    assert outcome.err.startswith('error: precision "bfloat16" is not possible here: ')
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
