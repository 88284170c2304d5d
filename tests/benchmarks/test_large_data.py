"""The data path of a run, on data that cost nothing."""

import json
from pathlib import Path

import pytest

from benchmarks import large_data


def test_it_runs_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_data, "_in_own_process", large_data.data_path)
    monkeypatch.setattr(large_data, "WORDS", 50)
    (tmp_path / "work").mkdir()
    out = tmp_path / "results.json"
    large_data.main(["--rows", "60", "--tokens", "24", "--folder", str(tmp_path / "work"), "--out", str(out)])
    document = json.loads(out.read_text())
    first, again = document["calls"]["first"], document["calls"]["again"]
    assert {key: first[key] for key in ("rows", "tokens", "cut", "checksum")} == {
        key: again[key] for key in ("rows", "tokens", "cut", "checksum")
    }
    assert first["rows"] == 60
    assert 0 < first["cut"] < 60
    assert first["peak_anonymous_bytes"] > 10_000_000
    assert set(first["seconds"]) == {"reading", "digest", "tokens", "epoch"}
    assert "60 rows" in capsys.readouterr().out
    assert not list((tmp_path / "work").iterdir()), "what it wrote is still there"
