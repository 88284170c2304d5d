"""What may be published, and what is refused with which words."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_store.errors import InvalidRequestError, UnsupportedModelError
from model_store.model.config import spec_of
from model_store.model.model import INT4, Model
from model_store.storage.files import copy_new
from model_store.store import Store
from model_store.version.ref import Ref
from model_store.version.source import check_publishable, inspect, list_files
from nash.int4.calibration import round_without_data
from tests.tiny_families import CASES, build_tiny
from tests.tiny_models import build_tiny_t5, build_tokenizer

Edit = Callable[..., None]


def refuse(directory: Path, message: str) -> None:
    """The store refuses the directory with this message and keeps nothing of it."""
    store = Store(directory.parent / "refusing")
    with pytest.raises(InvalidRequestError, match=message):
        store.publish("g2p", directory)
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_every_kind_of_t5_is_accepted(gated: bool, tied: bool, tmp_path: Path) -> None:
    directory = build_tiny_t5(tmp_path / "model", gated=gated, tied=tied)
    list_files(directory)
    source = inspect(directory)
    assert source.kind == "dense"
    assert source.spec.gated_ffn is gated
    assert ("lm_head.weight" in load_file(directory / "model.safetensors")) is not tied
    assert source.parameters == sum(t.numel() for t in load_file(directory / "model.safetensors").values())


@pytest.mark.parametrize("name", CASES)
def test_every_family_is_accepted_as_transformers_saves_it(name: str, tmp_path: Path) -> None:
    directory = build_tiny(CASES[name], tmp_path / "model")
    build_tokenizer().save(str(directory / "tokenizer.json"))
    for sentencepiece in ("source.spm", "target.spm"):
        (directory / sentencepiece).write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    store = Store(tmp_path / "store")
    store.publish("translator", directory)
    version = store.resolve(Ref.parse("translator"))
    assert version.manifest.kind == "dense"
    assert version.manifest.spec.family == inspect(directory).spec.family
    assert {file.path for file in version.manifest.files} >= {"source.spm", "target.spm", "model.safetensors"}


def test_a_compact_model_is_accepted(built_compact_t5: Path) -> None:
    source = inspect(built_compact_t5)
    assert source.kind == "pruned"
    assert source.spec.compact


def test_harmless_extras_are_stored_and_hidden_ones_are_not(model_dir: Path) -> None:
    extras = {
        "README.md": "# hello",
        "recipe.toml": "seed = 0",
        "training_log.jsonl": '{"loss": 1}\n',
        "vocab.txt": "a",
    }
    for name, text in extras.items():
        (model_dir / name).write_text(text)
    (model_dir / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    (model_dir / ".cache").mkdir()
    (model_dir / ".gitattributes").write_text("*.bin")
    inspect_names = set(list_files(model_dir))
    assert extras.keys() | {"spiece.model"} <= inspect_names
    assert not any(name.startswith(".") for name in inspect_names)
    Store(model_dir.parent / "store").publish("g2p", model_dir)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_missing_file(name: str, model_dir: Path) -> None:
    (model_dir / name).unlink()
    refuse(model_dir, f"has no {name}")


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "model.pkl", "notes.txt", "x.json", "y.model"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_refused_by_content(name: str, protocol: int, model_dir: Path) -> None:
    (model_dir / name).write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    refuse(model_dir, rf"{name} is a pickle: delete it")


def test_torch_files_are_refused(model_dir: Path) -> None:
    torch.save({"w": torch.ones(1)}, model_dir / "pytorch_model.bin")
    refuse(model_dir, r"pytorch_model\.bin is a zip archive")
    (model_dir / "pytorch_model.bin").rename(model_dir / "model.safetensors")
    refuse(model_dir, r"model\.safetensors is a zip archive")


def test_a_header_as_long_as_a_pickles_first_bytes_is_no_pickle(model_dir: Path) -> None:
    """1152 is 80 04 in bytes, and so begins a pickle of protocol 4."""
    path = model_dir / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length < 1152 + 65536
    padded = content[8 : 8 + length].ljust(1152 + 65536 if length > 1152 else 1152)
    path.write_bytes(len(padded).to_bytes(8, "little") + padded + content[8 + length :])
    assert path.read_bytes()[:2] == b"\x80\x04"
    inspect(model_dir)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_x.py", "tok.vocab", "run", "a b.json", "x.json~"])
def test_unknown_kinds_of_file(name: str, model_dir: Path) -> None:
    (model_dir / name).write_text("{}")
    refuse(model_dir, "does not belong in a model directory")


def test_shards(model_dir: Path) -> None:
    (model_dir / "model.safetensors").rename(model_dir / "model-00001-of-00002.safetensors")
    refuse(model_dir, "has no model.safetensors")


def test_names_that_differ_only_in_case(model_dir: Path) -> None:
    (model_dir / "Config.json").write_text("{}")
    refuse(model_dir, "differ only in case")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "extra.json"])
def test_symbolic_links(name: str, model_dir: Path) -> None:
    target = model_dir.parent / "elsewhere"
    target.write_text("{}")
    (model_dir / name).unlink(missing_ok=True)
    (model_dir / name).symlink_to(target)
    refuse(model_dir, f"{name} is a symbolic link")


def test_a_link_that_slips_in_after_the_look(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap_and_copy(source: Path, target: Path) -> tuple[str, int]:
        if source.name == "tokenizer.json":
            source.rename(model_dir.parent / "elsewhere")
            source.symlink_to(model_dir.parent / "elsewhere")
        return copy_new(source, target)

    monkeypatch.setattr("model_store.operations.publish.copy_new", swap_and_copy)
    with pytest.raises(InvalidRequestError, match=r"tokenizer\.json is a symbolic link"):
        Store(model_dir.parent / "refusing").publish("g2p", model_dir)


def test_folders_and_pipes(model_dir: Path) -> None:
    (model_dir / "checkpoint-500").mkdir()
    refuse(model_dir, "checkpoint-500 is not a regular file")
    (model_dir / "checkpoint-500").rmdir()
    os.mkfifo(model_dir / "pipe.txt")
    refuse(model_dir, r"pipe\.txt is not a regular file")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_remote_code(name: str, model_dir: Path) -> None:
    content = json.loads((model_dir / name).read_text())
    (model_dir / name).write_text(json.dumps(content | {"sub": [{"auto_map": {"AutoConfig": "evil.Config"}}]}))
    refuse(model_dir, rf"{name} asks for remote code")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", r"config\.json is not JSON"),
        ("config.json", b"[]", "config.json does not hold a JSON object"),
        ("config.json", b"[" * 100_000, r"config\.json is not JSON"),
        ("generation_config.json", b"\xff\xfe", "not UTF-8 text"),
        ("README.md", b"\xff\xfe", "not UTF-8 text"),
        ("README.md", b"a\0b", "not text"),
        ("spiece.model", b"MZ", "not a SentencePiece model"),
        ("tokenizer.json", b"{}", "cannot be loaded as a tokenizer"),
        ("model.safetensors", b"{}", "not a whole safetensors file"),
    ],
)
def test_content_that_is_not_what_the_name_says(name: str, content: bytes, message: str, model_dir: Path) -> None:
    (model_dir / name).write_bytes(content)
    refuse(model_dir, message)


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


Q = "encoder.block.0.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q), f"has no tensor '{Q}'"),
        (
            lambda t: t.update({Q: torch.zeros(31, 32)}),
            rf"'{Q}' has shape \[31, 32\], config.json calls for \[32, 32\]",
        ),
        (lambda t: t.update({Q: t[Q].double()}), "dtype F64"),
        (lambda t: t.update({"evil.weight": torch.zeros(1)}), "the tensor 'evil.weight', which config.json does not"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(3, 32)}), "'lm_head.weight' has shape"),
    ],
)
def test_tensors_that_do_not_fit(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, model_dir: Path
) -> None:
    change_tensors(model_dir, change)
    refuse(model_dir, message)


def test_tensors_that_old_checkpoints_have_twice(model_dir: Path) -> None:
    before = inspect(model_dir)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for stack in ("encoder", "decoder"):
            tensors[f"{stack}.embed_tokens.weight"] = tensors["shared.weight"].clone()
        tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(32, 4)

    change_tensors(model_dir, add)
    after = inspect(model_dir)
    assert (after.parameters, after.tensor_bytes) == (before.parameters, before.tensor_bytes)


def test_half_precision(model_dir: Path) -> None:
    wide = inspect(model_dir)
    change_tensors(model_dir, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()}))
    narrow = inspect(model_dir)
    assert narrow.dtype == "bfloat16"
    assert narrow.tensor_bytes * 2 == wide.tensor_bytes
    change_tensors(model_dir, lambda tensors: tensors.update({Q: tensors[Q].float()}))
    assert inspect(model_dir).dtype == "bfloat16+float32"


def test_config_that_does_not_fit_the_tensors(model_dir: Path, edit_config: Edit) -> None:
    edit_config(num_layers=5)
    refuse(model_dir, r"has no tensor 'encoder\.block\.4")


def test_tokenizer_of_another_model(model_dir: Path) -> None:
    path = model_dir / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["ä"] = 30
    path.write_text(json.dumps(content))
    refuse(model_dir, "token id 30, but config.json has a vocabulary of 30")


def test_unsupported_model(model_dir: Path, edit_config: Edit) -> None:
    edit_config(model_type="led")
    with pytest.raises(
        UnsupportedModelError, match="'led' is not supported: use a model of the family t5, mt5, umt5, bart"
    ):
        inspect(model_dir)
    refuse(model_dir, "'led'")


def test_not_a_directory(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "is not a directory")
    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file", "is not a directory")


def test_four_bits_of_the_model_itself_are_accepted(model_dir: Path) -> None:
    round_without_data(Model.open(model_dir))
    assert INT4 in list_files(model_dir)
    assert inspect(model_dir) == inspect(build_tiny_t5(model_dir.parent / "plain"))


def test_four_bits_of_another_model_are_refused(model_dir: Path) -> None:
    round_without_data(Model.open(model_dir))
    tensors = load_file(model_dir / INT4)
    for changed, message in (
        ({key: value for key, value in tensors.items() if key != "encoder.0.ffn.out.steps"}, "lacks the tensor"),
        (tensors | {"encoder.9.ffn.out.steps": torch.ones(1).half()}, "has no place for the tensor 'encoder.9"),
        (tensors | {"encoder.0.ffn.out.steps": torch.ones(32, 2)}, r"is F32 \[32, 2\], .* calls for F16 \[32, 2\]"),
    ):
        save_file(changed, model_dir / INT4)
        refuse(model_dir, message)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite(value: float, dtype: torch.dtype, model_dir: Path) -> None:
    path = model_dir / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    check_publishable(model_dir)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, metadata={"format": "pt"})
    refuse(model_dir, f"{re.escape(repr(name))} has weights that are NaN or infinite")


def test_positions_beyond_all_measure(model_dir: Path) -> None:
    build_tiny(CASES["marian"], model_dir / "marian")
    config = json.loads((model_dir / "marian" / "config.json").read_text())
    for positions in (10**7, 2**31 - 1):
        config["max_position_embeddings"] = positions
        with pytest.raises(UnsupportedModelError, match=r"max_position_embeddings is .* from 1 to 131072"):
            spec_of(config)
