"""From a model and data to its `int4.safetensors`: whose inputs are counted, and what comes of them."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_store.model.int4 import int4_matrices
from model_store.model.model import INT4, Model
from nash.data.examples import TokenizedPairs
from nash.data.rows import TaskRow
from nash.errors import NashError
from nash.int4.calibration import _input_grams, calibrate, calibrated_copy, round_without_data
from nash.modeling.folders import load_dense, load_tokenizer
from nash.training.objective import decoder_inputs
from server.engine.interface.config import EngineConfig
from server.engine.pytorch.backend import TorchBackend
from tests.engine.family_reference import backend_logits
from tests.nash.pruned_families import FAMILIES, build
from tests.nash.tiny_training import build_task_model, task_rows
from tests.tiny_models import build_tiny_t5

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_task_model(tmp_path_factory.mktemp("int4") / "model", dropout=0.1)


def own_copy(directory: Path, to: Path) -> Path:
    return Path(shutil.copytree(directory, to))


def pairs_of(folder: Path, rows: list[TaskRow]) -> list[tuple[list[int], list[int]]]:
    tokenized = TokenizedPairs.of(rows, load_tokenizer(folder), max_source_tokens=64, max_target_tokens=64)
    return [(tokenized[i]["input_ids"].tolist(), tokenized[i]["labels"].tolist()) for i in range(len(tokenized))]


@torch.no_grad()
def test_grams_are_those_of_what_transformers_matrices_are_given(model_dir: Path) -> None:
    """With a norm's weights taken away where they are folded into the matrix; padding counts nowhere."""
    pairs = pairs_of(model_dir, task_rows(40))
    model = load_dense(Model.open(model_dir)).eval()
    inputs: dict[str, list[Tensor]] = {}
    ours_by_theirs = {
        "encoder.1.attention.key": "encoder.block.1.layer.0.SelfAttention.k",
        "encoder.2.ffn.out": "encoder.block.2.layer.1.DenseReluDense.wo",
        "decoder.0.attention.out": "decoder.block.0.layer.0.SelfAttention.o",
        "decoder.1.cross.query": "decoder.block.1.layer.1.EncDecAttention.q",
        "decoder.2.cross.value": "decoder.block.2.layer.1.EncDecAttention.v",
        "decoder.2.ffn.into": "decoder.block.2.layer.2.DenseReluDense.wi",
    }
    norms = {
        "encoder.1.attention.key": "encoder.block.1.layer.0.layer_norm",
        "decoder.1.cross.query": "decoder.block.1.layer.1.layer_norm",
        "decoder.2.cross.value": "encoder.final_layer_norm",
        "decoder.2.ffn.into": "decoder.block.2.layer.2.layer_norm",
    }
    for ours, theirs in ours_by_theirs.items():
        gain = model.get_submodule(norms[ours]).weight if ours in norms else 1.0
        kept = inputs.setdefault(ours, [])
        model.get_submodule(theirs).register_forward_pre_hook(
            lambda _, x, kept=kept, gain=gain: kept.append(x[0] / gain)
        )
    for source, target in pairs:
        labels = torch.tensor([target])
        batch = {"input_ids": torch.tensor([source]), "attention_mask": torch.ones(1, len(source)), "labels": labels}
        model(**decoder_inputs(model.config, batch))
    grams = _input_grams(Model.open(model_dir), pairs)
    assert grams.keys() == {name for name, _ in int4_matrices(Model.open(model_dir).spec)}
    for name, seen in inputs.items():
        x_NI = torch.cat([x.flatten(0, 1) for x in seen]).double()
        expected, found = x_NI.T @ x_NI, grams[name].double()
        if name in norms:  # PyTorch's side leaves the norm's factor, the root of the width, to the matrix
            found = found * (expected.trace() / found.trace())
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["t5", *FAMILIES])
@torch.inference_mode()
def test_calibrated_answers_are_nearer_than_plainly_rounded_ones(name: str, tmp_path: Path) -> None:
    folder = build_tiny_t5(tmp_path / "m", gated=True) if name == "t5" else build(FAMILIES[name], tmp_path / "m")
    rows, spec = task_rows(300), Model.open(folder).spec
    pairs = [pair for pair in pairs_of(folder, rows) if len(pair[1]) >= 6][:12]
    sources, targets = [source for source, _ in pairs], [[spec.decoder_start_id, *target[:5]] for _, target in pairs]

    def logits(dtype: str) -> Tensor:
        config = EngineConfig(dtype=dtype, slots=12, max_source_tokens=64, max_new_tokens=16)
        return backend_logits(TorchBackend.load(Model.open(folder), config, torch.float32), sources, targets)

    exact = logits("float32")
    round_without_data(Model.open(folder))
    plain = (logits("int4") - exact).norm()
    calibrate(Model.open(folder), rows, QUIET, max_source_tokens=64, max_target_tokens=64)
    assert 0 < (logits("int4") - exact).norm() < plain


def test_equal_draws_give_equal_files(model_dir: Path, tmp_path: Path) -> None:
    folders = [own_copy(model_dir, tmp_path / str(i)) for i in range(3)]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        calibrate(Model.open(folder), task_rows(30), QUIET, seed=seed)
    first, again, _ = ((folder / INT4).read_bytes() for folder in folders)
    assert first == again
    assert load_file(folders[0] / INT4).keys() == load_file(folders[2] / INT4).keys()


def test_damaged_weights(model_dir: Path, tmp_path: Path) -> None:
    folder = own_copy(model_dir, tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.block.0.layer.0.SelfAttention.o.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NashError, match="its weights are damaged"):
        calibrate(Model.open(folder), task_rows(30), QUIET)
    assert not (folder / INT4).exists()


def test_a_calibrated_copy_leaves_the_model_as_it_is(model_dir: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in model_dir.iterdir()}
    said = io.StringIO()
    calibrated_copy(model_dir, task_rows(30), tmp_path, Console(file=said))
    assert {path.name for path in tmp_path.iterdir()} == {*before, INT4}
    assert {path.name: path.read_bytes() for path in model_dir.iterdir()} == before
    matrices = len(load_file(tmp_path / INT4)) // 2
    lines = said.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines if "took" in line] == [
        "four bits: collecting the inputs of the matrices: 30/30 rows",
        f"four bits: rounding the matrices: {matrices}/{matrices}",
    ]
