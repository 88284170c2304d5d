"""Four bits a weight: the operator's numbers are those of the dequantized weights, and a row's are its own."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_store.errors import InvalidRequestError
from model_store.model.int4 import GROUP
from model_store.model.model import INT4, Model
from model_store.model.safetensors_header import read_metadata
from model_store.model.spec import ModelSpec
from model_store.store import Store
from nash.int4.calibration import round_without_data
from server.engine.capabilities import torch_int8
from server.engine.engine import Engine
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.native.backend import NativeBackend
from server.engine.native.building import int4_tiles
from server.engine.native.operator import library as native
from server.engine.native.operator import set_choice as sets
from server.engine.pytorch.backend import TorchBackend
from server.engine.weights.int4 import dequantized, quantized
from tests.engine import compact_bart
from tests.engine.compact import hollow, ragged, write_compact
from tests.engine.family_reference import backend_logits, targets, texts
from tests.tiny_families import CASES, build_tiny

CONFIG = EngineConfig(dtype="int4", slots=9, max_source_tokens=70, max_new_tokens=21, threads=2)
needs_native = pytest.mark.skipif(native.library() is None, reason="the native operator is not here")


@pytest.fixture(scope="module")
def int4_dir(dense_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rounded(shutil.copytree(dense_dir, tmp_path_factory.mktemp("int4") / "model"))


def rounded(directory: Path) -> Path:
    round_without_data(Model.open(directory))
    return directory


def load_native(directory: Path, **changes: object) -> NativeBackend:
    return NativeBackend.load(Model.open(directory), replace(CONFIG, **changes))  # type: ignore[arg-type]


def load_torch(directory: Path, dtype: str = "int4") -> TorchBackend:
    return TorchBackend.load(Model.open(directory), replace(CONFIG, dtype=dtype), torch.float32)


def draw(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Whole numbers [O, I] and float16 steps [O, G], some of them negative."""
    generator = torch.Generator().manual_seed(outputs * inputs)
    whole = torch.randint(-8, 8, (outputs, inputs), generator=generator, dtype=torch.int8)
    return whole, torch.randn(outputs, -(-inputs // GROUP), generator=generator).half()


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (5, 31), (33, 32), (64, 100)])
def test_whole_numbers_and_steps_come_back(outputs: int, inputs: int) -> None:
    whole, steps = draw(outputs, inputs)
    int4 = quantized(whole, steps)
    assert int4.nibbles_OGB.shape == (outputs, -(-inputs // GROUP), GROUP // 2)
    expected = whole.double() * steps.double().repeat_interleave(GROUP, dim=1)[:, :inputs]
    assert torch.equal(dequantized(int4, inputs).double(), expected)


def test_the_operators_tiles() -> None:
    """Group by group the steps of 32 outputs, then for each four inputs and the four 16 later one byte an output."""
    whole, steps = draw(37, 70)
    tiles = int4_tiles(quantized(whole, steps)).view(2, 3, 64 + 512)
    for output, group in ((0, 0), (5, 2), (31, 1), (32, 0), (36, 2)):
        tile = tiles[output // 32, group]
        assert tile[:64].clone().view(torch.float16)[output % 32] == steps[output, group]
        for i in range(16):
            byte = int(tile[64:].view(4, 32, 4)[i // 4, output % 32, i % 4])
            for nibble, place in ((byte & 15, 32 * group + i), (byte >> 4, 32 * group + i + 16)):
                assert nibble - 8 == (int(whole[output, place]) if place < 70 else 0)
    assert tiles[1, :, 64:].view(3, 4, 32, 4)[:, :, 5:].eq(0x88).all()


@torch.inference_mode()
def test_pytorch_multiplies_with_the_rounded_weights(int4_dir: Path) -> None:
    spec = Model.open(int4_dir).spec
    sources, wanted = texts(spec, [5, 70, 1, 33]), targets(spec, 4)
    expected, ours = (backend_logits(load_torch(int4_dir, dtype), sources, wanted) for dtype in ("float32", "int4"))
    assert 0 < (ours - expected).norm() < 0.8 * expected.norm()


@needs_native
@pytest.mark.parametrize("gated", [False, True])
@torch.inference_mode()
def test_logits_are_those_of_the_dequantized_weights(dense_dir: Path, gated: bool, tmp_path: Path) -> None:
    """Without attention, whose keys and values the operator keeps in bfloat16, as it keeps embeddings."""
    dense = Model.open(dense_dir).spec
    layers = tuple(replace(layer, self_heads=(), cross_heads=(), ffn=layer.ffn - gated) for layer in dense.decoder)
    directory = write_compact(dense_dir, replace(dense, decoder=layers), tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    tensors["shared.weight"] = tensors["shared.weight"].bfloat16().float()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    spec = Model.open(rounded(directory)).spec
    same: list[Tensor] = []
    for rows in (1, 2, 3, 5, 9):
        sources, wanted = texts(spec, [3] * rows), targets(spec, rows)
        exact, ours = (backend_logits(load_torch(directory, dtype), sources, wanted) for dtype in ("float32", "int4"))
        theirs = backend_logits(load_native(directory), sources, wanted)
        error, difference = (ours - exact).abs().amax(-1), (ours - theirs).abs().amax(-1)
        same.append((difference <= 1e-5 * ours.abs().max()).flatten())
        assert difference.norm() < 0.5 * error.norm()
    assert torch.cat(same).float().mean() > 0.8  # elsewhere a number stood between two steps


@needs_native
@pytest.mark.parametrize("cut", [None, ragged, hollow])
@torch.inference_mode()
def test_a_row_is_the_same_alone_and_in_company(
    dense_dir: Path, int4_dir: Path, cut: Callable[[ModelSpec], ModelSpec] | None, tmp_path: Path
) -> None:
    directory = int4_dir
    if cut is not None:
        directory = rounded(write_compact(dense_dir, cut(Model.open(dense_dir).spec), tmp_path / "cut"))
    spec = Model.open(directory).spec
    sources, wanted = texts(spec, [9, 40, 2, 17, 33, 8, 70, 1, 12]), targets(spec, 9)
    together = backend_logits(load_native(directory), sources, wanted)
    assert together.isfinite().all()
    alone = load_native(directory, threads=1)
    for i in range(len(sources)):
        assert torch.equal(backend_logits(alone, sources[i : i + 1], wanted[i : i + 1])[0], together[i])


@needs_native
@pytest.mark.parametrize("cut", [False, True])
@torch.inference_mode()
def test_each_layer_has_its_own_table_of_positions(cut: bool, tmp_path: Path) -> None:
    """The backends are nearer to each other than to float32."""
    dense_dir = build_tiny(CASES["umt5"], tmp_path / "dense")
    directory = dense_dir
    if cut:
        directory = write_compact(dense_dir, compact_bart.ragged(Model.open(dense_dir).spec), tmp_path / "cut")
    spec = Model.open(rounded(directory)).spec
    sources, wanted = texts(spec, [5, 60, 1, 33]), targets(spec, 4)
    exact, ours = (backend_logits(load_torch(directory, dtype), sources, wanted) for dtype in ("float32", "int4"))
    theirs = backend_logits(load_native(directory), sources, wanted)
    assert (ours - theirs).norm() < 0.5 * (ours - exact).norm()


@needs_native
@torch.inference_mode()
def test_what_is_not_finite_stays_in_its_row(t5_dir: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(t5_dir, tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    tensors["shared.weight"][7, 3] = torch.nan
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    rounded(directory)
    logits = backend_logits(load_native(directory), [[5, 1], [7, 1], [9, 1]], [[0, 4], [0, 4], [0, 7]])
    finite = logits[:, :, :7].isfinite().all(-1)
    assert finite.tolist() == [[True, True], [False, False], [True, False]]


@needs_native
def test_weights_take_less_room_than_in_int8(t5_dir: Path, tmp_path: Path) -> None:
    directory = rounded(shutil.copytree(t5_dir, tmp_path / "model"))
    int4, int8 = (load_native(directory, dtype=dtype).memory_bytes()["weights"] for dtype in ("int4", "int8"))
    assert int4 < 0.8 * int8


@pytest.mark.skipif(torch_int8() is not None, reason=f"PyTorch's int8, which the logits are in: {torch_int8()}")
def test_without_the_operator_pytorch_does_the_work(
    t5_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "available_sets", lambda: ())
    engine = Engine.load(Model.open(rounded(shutil.copytree(t5_dir, tmp_path / "model"))), CONFIG)
    assert isinstance(engine._backend, TorchBackend)
    sources = texts(engine.spec, [9, 40, 2])
    parameters = GenerationParameters(max_new_tokens=21, ignore_eos=True)
    together = [sequence.tokens for sequence in engine.generate(sources, parameters)]
    assert together == [engine.generate([source], parameters)[0].tokens for source in sources]


def test_a_model_that_is_not_calibrated(t5_dir: Path) -> None:
    with pytest.raises(
        LoadError, match=r"has no int4\.safetensors.* `nash models publish NAME DIR --calibrate-int4 DATA`"
    ):
        Engine.load(Model.open(t5_dir), CONFIG)


def test_weights_that_changed_since(t5_dir: Path, tmp_path: Path) -> None:
    directory = rounded(shutil.copytree(t5_dir, tmp_path / "model"))
    tensors = load_file(directory / "model.safetensors")
    tensors["encoder.final_layer_norm.weight"][0] += 1e-3
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"made from another model\.safetensors, which has changed since: calibrate"):
        Engine.load(Model.open(directory), CONFIG)
    with pytest.raises(InvalidRequestError, match=r"was made from another model\.safetensors"):
        Store(tmp_path / "store").publish("tiny", directory)


def test_steps_that_are_not_finite(t5_dir: Path, tmp_path: Path) -> None:
    directory = rounded(shutil.copytree(t5_dir, tmp_path / "model"))
    tensors = load_file(directory / INT4)
    tensors["decoder.1.cross.key.steps"][3, 0] = torch.nan
    save_file(tensors, directory / INT4, metadata=read_metadata(directory / INT4))
    with pytest.raises(LoadError, match=r"the steps of 'decoder\.1\.cross\.key' are not all finite: calibrate"):
        Engine.load(Model.open(directory), CONFIG)


def test_a_file_that_is_damaged_or_of_another_shape(t5_dir: Path, tmp_path: Path) -> None:
    directory = rounded(shutil.copytree(t5_dir, tmp_path / "model"))
    tensors = load_file(directory / INT4)
    save_file(tensors | {"encoder.0.ffn.into.steps": torch.ones(3, 1).half()}, directory / INT4)
    with pytest.raises(LoadError, match=r"'encoder\.0\.ffn\.into\.steps' is F16 \[3, 1\].* calls for F16 \[64, 1\]"):
        Engine.load(Model.open(directory), CONFIG)
    (directory / INT4).write_bytes((directory / INT4).read_bytes()[:-5])
    with pytest.raises(LoadError, match=r"int4\.safetensors is not a whole safetensors file"):
        Engine.load(Model.open(directory), CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "dtype 'int4' is for CPUs: use quantization 'bnb-nf4' on 'cuda'"),
        ({"quantization": "bnb-nf4"}, "dtype 'int4' and quantization 'bnb-nf4' cannot be combined: give one"),
    ],
)
def test_what_it_does_not_go_with(changes: dict[str, str], message: str, t5_dir: Path) -> None:
    with pytest.raises(LoadError, match=message):
        Engine.load(Model.open(t5_dir), replace(CONFIG, **changes))  # type: ignore[arg-type]
