"""Quality and speed of finished models, with one that is as small as it goes."""

import json
from pathlib import Path

import pytest

from benchmarks import headline
from model_store.model.model import Model
from nash.data.rows import read_rows
from nash.measuring.evaluate import evaluate
from nash.recipes.recipe import DataLayout
from server.engine.interface.config import EngineConfig
from tests.tiny_models import build_tiny_t5


def test_it_runs_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, short = tmp_path / "dense", tmp_path / "short"
    build_tiny_t5(dense)
    build_tiny_t5(short, decoder_layers=1)
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps({"source": word, "target": word}) + "\n" for word in ("ab", "cab", "a")))
    arguments = ["--data", str(data), "--max-source-tokens", "8", "--max-new-tokens", "5", "--out"]
    lengths = ["--source-tokens", "3", "--new-tokens", "4", "--seconds", "0"]
    headline.main([str(dense), str(short), *arguments, str(tmp_path / "out.json"), *lengths])
    document = json.loads((tmp_path / "out.json").read_text())
    assert (document["n"], document["metric"]) == (3, "exact")
    first, second = document["models"]
    assert (first["decoder_layers"], second["decoder_layers"]) == (3, 1)
    for model in document["models"]:
        assert [each["dtype"] for each in model["quality"]] == ["float32", "int8"]
        timed = [(each["dtype"], each["threads"]) for each in model["latency"]]
        assert timed == [("float32", 1), ("float32", 2), ("int8", 1), ("int8", 2)]
    for of_dense, of_other in zip(first["latency"], second["latency"], strict=True):
        assert of_dense["speedup"] == 1.0
        assert of_other["speedup"] == of_dense["total_ms"] / of_other["total_ms"]
    config = EngineConfig(max_source_tokens=8, max_new_tokens=5)
    found = evaluate(Model.open(dense), read_rows(data, DataLayout()), "exact", config).metrics
    assert first["quality"][0]["metrics"] == found
    assert str(dense) in capsys.readouterr().out
