"""Checkpoints of every family as they are published, through the commands: fine-tuned, pruned, served and exported."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from model_store.model.model import MARKS, Model
from model_store.store import Store
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.text.tokenization import TextCodec
from tests.nash.command_line import nash
from tests.nash.saved_checkpoints import CHECKPOINTS, build_checkpoint, source_lines, target_lines
from tests.running_server import RunningServer

TEXTS = ("the value of a list", "Return another thing, or 3 of them", "ßome für  漢字")
_DATA = '[data]\ntrain = "rows.jsonl"\nvalidation = "rows.jsonl"\nmax_source_tokens = 40\nmax_target_tokens = 40\n'
_STEPS = "max_steps = 2\nbatch_size = 4\n"
_FINETUNE = f'model = "./model"\n[training]\n{_STEPS}{_DATA}'
_PRUNE = f"""
model = "./model"
name = "small"
{_DATA}
[pruning]
encoder_sparsity = 0.3
decoder_layers = 1
[prune_training]
validation_rows = 0
{_STEPS}
[final_training]
validation_rows = 0
{_STEPS}
[workload]
source_tokens = 8
new_tokens = 4
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: build_checkpoint(family, folder / family) for family in CHECKPOINTS}


Answer = tuple[list[int], str]  # tokens, and the text that they are


def reference(folder: Path) -> list[Answer]:
    """The answers of transformers' own classes for a folder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
    answers = []
    for text in TEXTS:
        inputs = tokenizer([text], return_tensors="pt")
        with torch.inference_mode():
            [ids] = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).tolist()
        tokens = (
            ids[1:] if model.config.eos_token_id not in ids[1:] else ids[1 : ids.index(model.config.eos_token_id, 1)]
        )
        answers.append((tokens, tokenizer.decode(ids, skip_special_tokens=True)))
    return answers


def served(folder: Path) -> list[Answer]:
    """The same from what a server runs: its codec and its engine; the text comes whole and token by token."""
    model = Model.open(folder)
    engine = Engine.load(model, EngineConfig(threads=1, dtype="float32", max_source_tokens=64, max_new_tokens=16))
    codec, answers = TextCodec.load(folder, model.spec.eos_id), []
    for text in TEXTS:
        [source] = asyncio.run(codec.encode([text], fields=["text"], limit_tokens=64, truncate=None))
        [answer] = engine.generate([source.ids], engine.defaults.resolve({}))
        tokens, stream = [token for token in answer.tokens if token != model.spec.eos_id], codec.stream()
        assert "".join([*map(stream.push, tokens[:-1]), stream.finish(tokens[-1])]) == codec.decode(tokens)
        answers.append((tokens, codec.decode(tokens)))
    return answers


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_published_and_exported_as_transformers_reads_it(family: str, built: dict[str, Path], tmp_path: Path) -> None:
    """The same tokens and text from the folder, from what is served, and from a stock export."""
    folder = built[family]
    assert not (folder / "tokenizer.json").exists()
    before = sorted(path.name for path in folder.iterdir())
    store = tmp_path / "store"
    document = nash("models", "publish", family, folder, "--alias", "dense", "--store", store, "--json").document()
    assert document["created"]
    assert sorted(path.name for path in folder.iterdir()) == before, "the original is only read"
    assert nash("models", "publish", family, folder, "--store", store, "--json").document()["created"] is False
    published = Store(store).checkout(f"{family}@dense")
    assert {*before, "tokenizer.json"} == {path.name for path in published.iterdir()}
    nash("export", f"{family}@dense", "--out", tmp_path / "stock", "--store", store, "--json").document()
    wanted = reference(folder)
    assert len({text for _, text in wanted}) > 1, "answers depend on the source"
    assert served(published) == wanted
    assert reference(tmp_path / "stock") == wanted


def cycle(family: str, folder: Path, tmp_path: Path) -> None:
    """Fine-tune and prune, two updates each, from the folder as it is; both results answer."""
    shutil.copytree(folder, tmp_path / "model")
    rows = zip(source_lines()[:16], target_lines()[:16], strict=True)
    text = "".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "finetune.toml").write_text(_FINETUNE)
    (tmp_path / "prune.toml").write_text(_PRUNE)
    store = ("--store", tmp_path / "store", "--json")
    tuned = nash("finetune", tmp_path / "finetune.toml", "--out", tmp_path / "tuned", "--name", "tuned", *store)
    assert tuned.document()["ref"] == "tuned@dense"
    pruned = nash("prune", tmp_path / "prune.toml", "--out", tmp_path / "pruned", *store).document()
    assert pruned["pruned"]["parameters"] < pruned["dense"]["parameters"]
    found = Store(tmp_path / "store")
    tuned_folder = found.checkout("tuned@dense")
    assert served(tuned_folder) == reference(tuned_folder)
    nash("export", "small@pruned", "--format", "hf-dense", "--out", tmp_path / "stock", *store).document()
    assert served(found.checkout("small@pruned")) == reference(tmp_path / "stock")


def test_marian_through_the_commands_and_over_http(built: dict[str, Path], tmp_path: Path) -> None:
    cycle("marian", built["marian"], tmp_path)
    document = nash(
        "evaluate", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--metric", "translation",
        "--store", tmp_path / "none", "--max-source-tokens", 40, "--max-new-tokens", 8, "--json",
    ).document()  # fmt: skip
    assert document["n"] == 16
    bench = ("--source-tokens", 8, "--new-tokens", 4, "--repeats", 1, "--store", tmp_path / "none", "--json")
    assert nash("bench", tmp_path / "model", *bench).document()[0]["batch"] == 1
    assert not (tmp_path / "none").exists()
    options = "threads=1,dtype=float32"
    with RunningServer("--store", str(tmp_path / "store"), "--model", f"small@dense,{options}") as running:
        body = {"inputs": list(TEXTS), "parameters": {"details": True}}
        answers = httpx.post(f"{running.url}/generate", json=body, timeout=60).json()
    assert [answer["generated_text"] for answer in answers] == [text for _, text in reference(built["marian"])]
    marks = "".join(MARKS)
    assert not [answer for answer in answers if any(mark in json.dumps(answer, ensure_ascii=False) for mark in marks)]


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(CHECKPOINTS) - {"marian"}))
def test_other_families_through_the_commands(family: str, built: dict[str, Path], tmp_path: Path) -> None:
    cycle(family, built[family], tmp_path)
