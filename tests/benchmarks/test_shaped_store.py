"""The store of random models that load tests of well-known shapes run on."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import shaped_store
from model_store.model.model import Model
from model_store.store import Store
from nash.measuring.latency import measure_side_by_side


def test_both_models_and_the_workload_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "shaped"
    monkeypatch.setattr(sys, "argv", ["shaped_store", "--shape", "g2p", "--new-tokens", "5", "--out", str(out)])
    shaped_store.main()
    store = Store(out / "store")
    dense, pruned = (store.resolve(f"g2p@{alias}") for alias in ("dense", "pruned"))
    assert (dense.manifest.spec.decoder_layers, pruned.manifest.spec.decoder_layers) == (6, 2)
    config = json.loads((store.checkout(dense.ref) / "generation_config.json").read_text())
    assert (config["min_new_tokens"], config["max_new_tokens"]) == (5, 5)
    rows = [json.loads(line) for line in (out / "workload.jsonl").read_text().splitlines()]
    assert len(rows) == shaped_store.TEXTS
    assert all(3 <= len(row["source"].split()) <= 8 for row in rows)
    folders = [store.checkout(version.ref) for version in (dense, pruned)]
    latencies = measure_side_by_side(
        [Model.open(folder) for folder in folders], batch=1, source_tokens=8, new_tokens=5, repeats=1
    )
    assert all(latency.total_ms > 0 for latency in latencies)
