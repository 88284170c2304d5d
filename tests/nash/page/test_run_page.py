"""The page of a run: whole in itself, made from the run's files, and no reason for a run to fail."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from nash.page import run_page
from nash.page.charts import cut_over_time, thinned
from nash.page.run_page import RUN_PAGE, RunPage, page_of, render
from tests.nash.command_line import nash
from tests.nash.tiny_training import build_task_model

SETTINGS = {"metric": "exact", "name": "a<b", "data": {"train": "train.jsonl", "test": None}}
LOG = [
    {"loss": 2.0 / n, "learning_rate": 1e-3, "sparsity": 0.1 * n, "cut.encoder.1.feed_forward": 0.1 * n}
    | {"cut.decoder.0.self_attention": 0.0, "cut.encoder.0.self_attention": 0.5, "step": float(n)}
    for n in range(1, 5)
]
VALIDATION = {"eval_loss": 1.0, "eval_exact_match": 12.5, "step": 4.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run in its first phase."""
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "prune_log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in [*LOG, VALIDATION]) + '{"loss"')
    return tmp_path


class Balanced(HTMLParser):
    """Fails where elements are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_running_page(folder: Path) -> None:
    page = render(folder, "a<b@pruned", "running", "prune", 40)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert 'http-equiv="refresh"' in page
    assert "phase prune, step 4 of 40" in page
    assert "a&lt;b@pruned" in page
    assert "a<b" not in page
    assert "exact match" in page
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert [title.partition(",")[0].partition(":")[0] for title in titles] == [
        "Training losses",
        "Validation loss",
        "Quality on validation rows",
        "Sparsity",
        "Learning rate",
    ]
    assert page.count("<svg") == 5
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert not re.findall(r"https?://", page), "nothing is named outside of it"
    assert "data.train" in page
    assert "data.test" not in page


def test_a_page_without_anything_yet_and_one_that_ended(tmp_path: Path) -> None:
    empty = render(tmp_path, "r", "running", "", 0)
    assert "<svg" not in empty
    failed = render(tmp_path, "r", "the disk is full", "prune", 40)
    assert "refresh" not in failed
    assert "the disk is full" in failed


def test_layers_in_their_order_and_few_moments() -> None:
    steps, cuts = cut_over_time([*LOG, VALIDATION], "cut.")
    assert steps == [1, 2, 3, 4]
    assert list(cuts) == ["encoder.0.self_attention", "encoder.1.feed_forward", "decoder.0.self_attention"]
    assert cuts["encoder.1.feed_forward"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert cut_over_time([VALIDATION], "cut.") == ([], {})
    assert thinned(range(1000), 5) == [0, 250, 500, 749, 999]


def test_how_a_run_ended(folder: Path) -> None:
    console = Console(quiet=True)
    with pytest.raises(KeyboardInterrupt), page_of(folder, "r", console, done=False):
        raise KeyboardInterrupt
    assert "interrupted; the same command resumes it" in (folder / RUN_PAGE).read_text()
    with page_of(folder, "r", console, done=False):
        pass
    written = (folder / RUN_PAGE).read_text()
    assert "Done." in written
    with page_of(folder, "r", console, done=True):
        pass
    assert (folder / RUN_PAGE).read_text() == written


def test_an_error_ends_the_page_and_not_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> str:
        raise ValueError("no colour left")

    monkeypatch.setattr(run_page, "render", fail)
    page = RunPage(folder, "r", Console())
    page.begin("prune", 40)
    page.refresh(older_than_s=0)
    page.end("done")
    assert capsys.readouterr().out.count("run.html is no longer written: ValueError: no colour left") == 1


def test_a_whole_run_has_a_page(tmp_path: Path) -> None:
    """With the pruned model's picture and its speed."""
    build_task_model(tmp_path / "dense", dropout=0.0)
    (tmp_path / "rows.jsonl").write_text('{"source": "abc", "target": "cba"}\n' * 8)
    rows = ("--train", tmp_path / "rows.jsonl", "--eval", tmp_path / "rows.jsonl", "--max-steps", 1)
    model = ("--model", tmp_path / "dense", "--name", "r", "--decoder-layers", 1, "--encoder-sparsity", 0.5)
    out = tmp_path / "out"
    done = nash("prune", *model, *rows, "--publish-slower", "--out", out, "--store", tmp_path / "store")
    assert done.code == 0, done.err
    assert f"page: {out / RUN_PAGE}" in done.err
    page = (out / RUN_PAGE).read_text()
    assert page.index("Dense and pruned") < page.index("Phase prune") < page.index("Phase final")
    assert page.count('class="part') == 3 * (3 + 3 + 3), "a square a head of the dense model, also of dropped layers"
    assert "95 % interval" in page
