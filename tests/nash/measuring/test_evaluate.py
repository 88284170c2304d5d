"""Answers are decoded as the model's own generation_config says, which is what transformers does with it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model_store.model.model import Model
from nash.data.rows import TaskRow
from nash.measuring.evaluate import evaluate, predict, scored
from nash.modeling.folders import load_dense, load_tokenizer
from nash.recipes.recipe import MetricKind
from server.engine.interface.config import EngineConfig
from tests.nash.command_line import nash
from tests.tiny_models import EOS_ID, PAD_ID, VOCABULARY

SOURCES = ["abc", "the quick", "z", "nash", "prune me now", "qq"]
CONFIG = EngineConfig(max_source_tokens=32, max_new_tokens=24, slots=8)
BASE = {"decoder_start_token_id": PAD_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}


@pytest.fixture
def folder(tmp_path: Path, dense_dir: Path) -> Path:
    shutil.copytree(dense_dir, tmp_path / "model")
    return tmp_path / "model"


def set_generation(folder: Path, **fields: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(BASE | fields))


@torch.inference_mode()
def of_transformers(folder: Path) -> list[str]:
    model, tokenizer = load_dense(Model.open(folder)).eval(), load_tokenizer(folder)
    outputs = [model.generate(torch.tensor([tokenizer(source).input_ids]))[0] for source in SOURCES]
    return [tokenizer.decode(output, skip_special_tokens=True) for output in outputs]


@pytest.mark.parametrize(
    "fields",
    [
        {"max_new_tokens": 6},
        {"max_new_tokens": 9, "num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"max_length": 8, "forced_bos_token_id": VOCABULARY["x"], "forced_eos_token_id": EOS_ID},
        {"max_length": 12, "min_length": 8, "no_repeat_ngram_size": 2, "num_beams": 2},
        {"max_new_tokens": 9, "suppress_tokens": [VOCABULARY[c] for c in "aeiou"], "repetition_penalty": 1.5},
    ],
)
def test_the_models_own_settings(folder: Path, fields: dict[str, Any]) -> None:
    set_generation(folder, max_new_tokens=24)
    plain = predict(Model.open(folder), SOURCES, CONFIG)
    set_generation(folder, **fields)
    answers = predict(Model.open(folder), SOURCES, CONFIG)
    assert answers == of_transformers(folder)
    assert answers != plain
    rows = [
        TaskRow(source=source, targets=("a target", answer)) for source, answer in zip(SOURCES, answers, strict=True)
    ]
    assert evaluate(Model.open(folder), rows, "exact", CONFIG).metrics == {"exact_match": 100.0}


def test_sampling_gives_the_same_figures_every_time(folder: Path) -> None:
    set_generation(folder, max_new_tokens=12)
    greedy = predict(Model.open(folder), SOURCES, CONFIG)
    set_generation(folder, max_new_tokens=12, do_sample=True, temperature=2.0, num_return_sequences=3)
    sampled = predict(Model.open(folder), SOURCES, CONFIG)
    assert sampled == predict(Model.open(folder), SOURCES, CONFIG)
    assert sampled != greedy


def test_what_the_engine_is_loaded_for_bounds_the_models_lengths(folder: Path) -> None:
    set_generation(folder, max_new_tokens=24, min_new_tokens=20)
    long = predict(Model.open(folder), SOURCES, CONFIG)
    short = predict(Model.open(folder), SOURCES, EngineConfig(max_source_tokens=32, max_new_tokens=5))
    assert all(len(answer) <= 5 for answer in short)
    assert any(len(answer) > 5 for answer in long)


def test_columns_of_a_table(folder: Path, tmp_path: Path) -> None:
    set_generation(folder, max_new_tokens=6)
    asked = ["say abc", "say z"]
    answers = predict(Model.open(folder), asked, CONFIG)
    table = tmp_path / "data" / "test.csv"
    table.parent.mkdir()
    table.write_text(f"q,a,b\nabc,no,{answers[0]}\nz,no,\n")
    columns = ["--source-column", "q", "--target-column", "a", "--target-column", "b", "--prefix", "say "]
    outcome = nash("evaluate", f"{folder}/", "--data", table.parent, *columns, "--json", "--store", tmp_path / "store")
    assert outcome.document()["metrics"] == {"exact_match": 50.0}
    assert outcome.document()["n"] == 2


def test_data_that_a_metric_cannot_use(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("source\ttarget\nabc\thigh\n")
    arguments = ["evaluate", f"{folder}/", "--data", tmp_path / "rows.tsv", "--store", tmp_path / "store"]
    outcome = nash(*arguments, "--metric", "correlation")
    assert outcome.code == 2
    assert "target 'high' is not a number" in outcome.err
    outcome = nash(*arguments, "--target-column", "label")
    assert outcome.code == 2
    assert "line 2: column 'label' is missing; the row has 'source', 'target'" in outcome.err


def test_predictions_and_another_model(folder: Path, tmp_path: Path) -> None:
    """Beside a model that answers with more letters."""
    set_generation(folder, max_new_tokens=3)
    shutil.copytree(folder, tmp_path / "long")
    set_generation(tmp_path / "long", max_new_tokens=6)
    short, long = (predict(Model.open(each), SOURCES, CONFIG) for each in (folder, tmp_path / "long"))
    targets = [*long[:2], *short[2:]]
    data, file = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps({"source": s, "target": t or "-"}) for s, t in zip(SOURCES, targets, strict=True)]
    data.write_text("\n".join(lines))
    arguments = ("evaluate", folder, "--against", tmp_path / "long", "--data", data, "--predictions", file)
    document = nash(*arguments, "--json").document()
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["source"], row["prediction"], row["against"]) for row in written] == [
        *zip(SOURCES, short, long, strict=True)
    ]
    assert [row["score"] for row in written] == [100.0 * (row["prediction"] in row["targets"]) for row in written]
    against = document["against"]
    assert against["differing"] == sum(s != t for s, t in zip(short, long, strict=True)) > 2
    gains = [row["score"] - row["against_score"] for row in against["rows"]]
    assert gains == sorted(gains)
    assert {row["source"] for row in against["rows"][:2]} == set(SOURCES[:2]), "where the other one was right"
    refused = nash(*arguments)
    assert refused.code == 2
    assert "out.jsonl already exists" in refused.err
    shown = nash(*arguments[:-2])
    assert f"{against['differing']} of 6 answers differ, the greatest losses first:" in shown.out
    assert f"{folder}: {short[0]}" in shown.out


@pytest.mark.parametrize(
    ("metric", "answer", "targets", "score"),
    [
        ("exact", "a", ("b", "a"), 100.0),
        ("phonemes", "a b c d", ("a b c e",), 75.0),
        ("summarization", "the cat", ("the cat", "a dog"), 100.0),
        ("translation", "the cat", ("the cat",), 100.0),
        ("question_answering", "the cat", ("Cat!",), 100.0),
        ("classification", "good", ("bad",), 0.0),
        ("correlation", "1.5", ("2.0",), None),
    ],
)
def test_the_score_of_a_row(metric: MetricKind, answer: str, targets: tuple[str, ...], score: float | None) -> None:
    [found] = scored([TaskRow(source="s", targets=targets)], [answer], metric)
    assert found.score == (None if score is None else pytest.approx(score))
    assert found.document().keys() == {"source", "targets", "prediction", "score"}
