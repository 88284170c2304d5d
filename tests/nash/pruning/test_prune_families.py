"""`nash prune` from beginning to end on families other than T5, gates on one stack and on both."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from model_store.model.model import Model
from model_store.store import Store
from tests.nash.command_line import nash
from tests.nash.pruned_families import FAMILIES, assert_same, build, logits, read
from tests.nash.tiny_training import task_rows

TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}  # of the tests' tokenizer
NASH = ""
COFI = 'gate_sublayers = true\ngate_hidden = true\ngated_stacks = "both"'
RECIPE = """
model = "./dense"
name = "reverse"
publish_slower = true
[data]
train = "train.jsonl"
validation = "validation.jsonl"
max_source_tokens = 16
max_target_tokens = 16
[pruning]
encoder_sparsity = 0.4
decoder_layers = 1
{gates}
[prune_training]
validation_rows = 0
max_steps = 3
batch_size = 8
optimizer = "muon"
[final_training]
validation_rows = 0
max_steps = 3
batch_size = 8
"""


def prepare(family: str, gates: str, folder: Path) -> None:
    """Put a random model, data and a recipe into a folder."""
    case = FAMILIES[family]
    layerdrop = {} if "d_kv" in case.fields else {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}
    build(replace(case, changes={**case.changes, **TOKENS, **layerdrop}), folder / "dense")
    rows = [{"source": row.source, "target": list(row.targets)} for row in task_rows(40)]
    for split, chosen in {"train": rows[:32], "validation": rows[32:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    (folder / "prune.toml").write_text(RECIPE.format(gates=gates))


def prune(family: str, gates: str, folder: Path) -> Path:
    """Prune a random model by the command; the published model's directory."""
    prepare(family, gates, folder)
    store = folder / "store"
    outcome = nash("prune", folder / "prune.toml", "--out", folder / "out", "--store", store, "--json")
    document = outcome.document()
    assert document["ref"] == "reverse@pruned"
    assert document["pruned"]["parameters"] < document["dense"]["parameters"]
    return Store(store).checkout("reverse@pruned")


def check(family: str, gates: str, folder: Path) -> None:
    published = prune(family, gates, folder)
    dense, spec = Model.open(folder / "dense").spec, Model.open(published).spec
    assert (spec.family, len(spec.encoder), len(spec.decoder)) == (dense.family, len(dense.encoder), 1)
    whole = spec.decoder[0].ffn == dense.decoder_d_ff and len(spec.decoder[0].self_heads) == dense.num_heads
    if gates == NASH:
        one_head = spec.head_weights / (spec.num_heads * spec.head_weights + spec.d_ff * spec.unit_weights)
        assert spec.encoder_sparsity == pytest.approx(0.4, abs=one_head / len(spec.encoder))
        assert whole
    else:
        assert not whole
    compact, final = read(folder / "out" / "compact"), read(published)
    assert type(final).__name__ == "Nash" + FAMILIES[family].model.__name__
    left_alone = [
        name for name, p in final.named_parameters() if torch.equal(p, dict(compact.named_parameters())[name])
    ]
    assert all("embed_positions" in name and spec.facts.positions == "sinusoidal" for name in left_alone)
    stock = folder / "stock"
    assert nash("export", published, "--format", "hf-dense", "--out", stock).code == 0
    assert_same(logits(AutoModelForSeq2SeqLM.from_pretrained(stock).eval(), spec), logits(final, spec))


@pytest.mark.parametrize(("family", "gates"), [("bart", NASH), ("marian", COFI), ("umt5", COFI)])
def test_from_a_recipe_to_the_store(family: str, gates: str, tmp_path: Path) -> None:
    check(family, gates, tmp_path)


def test_texts_longer_than_the_positions_are_refused(tmp_path: Path) -> None:
    """T5 and M2M100 have any number of them."""
    prepare("bart", NASH, tmp_path)
    recipe = tmp_path / "prune.toml"
    recipe.write_text(recipe.read_text().replace("max_target_tokens = 16", "max_target_tokens = 76"))
    outcome = nash("prune", recipe, "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert outcome.code == 2
    assert "data.max_target_tokens 76 is more than the model's 75 positions" in outcome.err
    assert not (tmp_path / "out").exists()
    text = recipe.read_text()
    data = text[text.index("[data]") : text.index("[pruning]")]
    (tmp_path / "finetune.toml").write_text(f'model = "./dense"\n{data}[training]\nmax_steps = 1\n')
    outcome = nash("finetune", tmp_path / "finetune.toml", "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert outcome.code == 2
    assert "data.max_target_tokens 76 is more than" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("gates", [NASH, COFI])
@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_recipe_to_the_store_for_every_family(family: str, gates: str, tmp_path: Path) -> None:
    check(family, gates, tmp_path)
