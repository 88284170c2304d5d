"""Tokens on disk: those that transformers makes, kept for who asks for the same, whole or not at all."""

import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from nash.data import token_files
from nash.data.examples import TokenizedPairs
from nash.data.rows import RowFile, TaskRow
from nash.data.tokens import Limits, RaggedTokens, TokenBatch, in_batches, tokenized_batches
from nash.errors import DiskFullError
from nash.modeling.folders import load_tokenizer
from nash.recipes.recipe import DataRecipe
from nash.training.token_cache import TokenCache
from tests.nash.tiny_training import build_task_model, task_rows

LIMITS = Limits(source=9, target=5)
ROWS = [
    TaskRow(source=row.source, targets=(*row.targets, "abcabcabc")[: 1 + i % 2]) for i, row in enumerate(task_rows(40))
]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_task_model(tmp_path_factory.mktemp("model") / "m", dropout=0.0)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


@pytest.fixture(autouse=True)
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that has used threads must not do so after a fork."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nash.data.tokens._MOST_CHARACTERS", 40)


def expected(tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int], int]]:
    """One text at a time, by transformers."""

    def ids(text: str, limit: int) -> list[int]:
        found: list[int] = tokenizer(text, truncation=True, max_length=limit).input_ids
        return found

    return [
        (ids(row.source, LIMITS.source), ids(target, LIMITS.target), number)
        for number, row in enumerate(ROWS, 1)
        for target in row.targets
    ]


def found(pairs: TokenizedPairs) -> list[tuple[list[int], list[int], int]]:
    examples = [pairs[i] for i in range(len(pairs))]
    return [(each["input_ids"].tolist(), each["labels"].tolist(), each["row"]) for each in examples]


def keep(cache: Path, tokenizer: PreTrainedTokenizerBase, **more: Any) -> Path:
    return token_files.kept_tokens(cache, {"data": "d"}, lambda: tokenized_batches(ROWS, tokenizer, LIMITS), **more)


@pytest.mark.usefixtures("small_batches")
def test_they_are_transformers_own(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """In memory, in files, and in another process."""
    in_memory = TokenizedPairs.of(ROWS, tokenizer, max_source_tokens=LIMITS.source, max_target_tokens=LIMITS.target)
    kept = TokenizedPairs.in_folder(keep(tmp_path, tokenizer))
    assert len(list(tokenized_batches(ROWS, tokenizer, LIMITS))) > 5
    sent = [pickle.loads(pickle.dumps(pairs)) for pairs in (in_memory, kept)]  # noqa: S301  written here
    for pairs in (in_memory, kept, *sent):
        assert found(pairs) == expected(tokenizer)
        assert pairs.lengths().tolist() == [[len(source), len(target)] for source, target, _ in expected(tokenizer)]
        assert pairs.cut == sum(
            (len(tokenizer(row.source).input_ids) > LIMITS.source) + (len(tokenizer(target).input_ids) > LIMITS.target)
            for row in ROWS
            for target in row.targets
        )
        assert pairs.cut > 0
    assert len(pickle.dumps(kept)) < 1000, "a worker is given the folder, not the tokens"


def test_a_tokenizer_that_does_not_say_what_it_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    class Slow:
        is_fast = False
        num_special_tokens_to_add = tokenizer.num_special_tokens_to_add

        def __call__(self, **arguments: Any) -> Any:
            return tokenizer(**arguments)

    limits = {"max_source_tokens": LIMITS.source, "max_target_tokens": LIMITS.target}
    slow, fast = (TokenizedPairs.of(ROWS, each, **limits) for each in (Slow(), tokenizer))
    assert found(slow) == found(fast)
    assert slow.cut == fast.cut


def test_batches_hold_so_many_characters_or_one_longer_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nash.data.tokens._MOST_CHARACTERS", 4)
    monkeypatch.setattr("nash.data.tokens._MOST_TEXTS", 3)
    texts = ["aa", "bb", "c", "dddddd", "", "e", "", "", "ffff"]
    assert list(in_batches(texts, len)) == [["aa", "bb"], ["c"], ["dddddd"], ["", "e", ""], ["", "ffff"]]
    assert list(in_batches([], len)) == []


def test_texts_without_tokens(tmp_path: Path) -> None:
    nothing = TokenBatch(
        rows=1,
        source_ids=np.empty(0, np.int32),
        source_lengths=np.zeros(1, np.int64),
        target_ids=np.empty(0, np.int32),
        target_lengths=np.zeros(1, np.int64),
        targets_of_row=np.ones(1, np.int64),
        cut=0,
    )
    pairs = TokenizedPairs.in_folder(token_files.kept_tokens(tmp_path, {}, lambda: iter([nothing])))
    assert found(pairs) == [([], [], 1)]
    assert pairs.targets.largest() == 0
    assert not pairs.targets.has(0)


def test_what_occurs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nash.data.tokens._AT_ONCE", 2)
    texts = RaggedTokens(np.array([3, 9, 4, 1, 0], np.int32), np.array([0, 2, 2, 5]))
    assert [each.tolist() for each in texts] == [[3, 9], [], [4, 1, 0]]
    assert texts.largest() == 9
    assert [token for token in range(10) if texts.has(token)] == [0, 1, 3, 4, 9]


class Counted:
    """A run's cache whose tokenizing is counted."""

    def __init__(self, cache: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.tokenizer_folder, self.count = cache, tokenizer_folder, 0

        def batches(*arguments: Any) -> Iterator[TokenBatch]:
            self.count += 1
            return tokenized_batches(*arguments)

        monkeypatch.setattr("nash.training.token_cache.tokenized_batches", batches)

    def pairs(self, content: dict[str, str] | None = None, **data: Any) -> TokenizedPairs:
        recipe = DataRecipe(train=Path("t"), validation=Path("v"), **data)
        cache = TokenCache(
            folder=self.cache,
            tokenizer=load_tokenizer(self.tokenizer_folder),
            tokenizer_folder=self.tokenizer_folder,
            data=recipe,
            console=Console(quiet=True),
        )
        return cache.pairs(ROWS, content or {"data": "d"})


def test_only_what_is_asked_for_again_is_taken_from_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Counted(tmp_path / "tokens", folder, monkeypatch)
    first = cache.pairs()
    assert found(cache.pairs()) == found(first)
    assert cache.count == 1
    assert found(cache.pairs(workers=2)) == found(first)
    assert cache.count == 1
    for number, change in enumerate(
        (
            {"content": {"data": "e"}},
            {"content": {"data": "d", "answers": "a"}},
            {"max_source_tokens": 5},
            {"max_target_tokens": 5},
            {"prefix": "a"},
            {"source_column": "a"},
            {"target_columns": ["a"]},
        ),
        2,
    ):
        cache.pairs(**change)  # type: ignore[arg-type]
        cache.pairs(**change)  # type: ignore[arg-type]
        assert cache.count == number, change
    monkeypatch.setattr("nash.training.token_cache.version", lambda library: "9.9")
    cache.pairs()
    monkeypatch.setattr("nash.data.token_files.FORMAT", 0)
    cache.pairs()
    other = build_task_model(tmp_path / "other", dropout=0.0)
    document = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(document | {"post_processor": None}))
    cache.tokenizer_folder = other
    assert found(cache.pairs()) != found(first)
    assert cache.count == 11


def cut_short(kept: Path) -> None:
    (kept / "target_ids.bin").write_bytes((kept / "target_ids.bin").read_bytes()[:-4])


def other_ids(kept: Path) -> None:
    ids = bytearray((kept / "source_ids.bin").read_bytes())
    ids[0] ^= 1
    (kept / "source_ids.bin").write_bytes(ids)


def without_rows(kept: Path) -> None:
    (kept / "rows.bin").unlink()


def half_a_list(kept: Path) -> None:
    (kept / "tokens.json").write_text('{"arrays": {"rows"')


def no_list(kept: Path) -> None:
    (kept / "tokens.json").write_text('{"arrays": []}')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_short, "target_ids.bin has 1104 bytes, not 1108"),
        (other_ids, "source_ids.bin has another checksum"),
        (without_rows, "No such file"),
        (half_a_list, "delimiter"),
        (no_list, "list indices"),
    ],
)
def test_what_is_damaged_is_made_again(
    damage: Callable[[Path], None], says: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    kept = keep(tmp_path, tokenizer)
    damage(kept)
    said: list[str] = []
    assert keep(tmp_path, tokenizer, say=said.append) == kept
    assert found(TokenizedPairs.in_folder(kept)) == expected(tokenizer)
    assert len(said) == 1
    assert says in said[0]
    assert str(kept) in said[0]


@pytest.mark.usefixtures("small_batches")
def test_killed_on_the_way(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """What it leaves is used by nobody, and goes with the next call."""

    def dies(batches: Iterator[TokenBatch]) -> Iterator[TokenBatch]:
        yield next(batches)
        yield next(batches)
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(
        target=token_files.kept_tokens,
        args=(tmp_path, {"data": "d"}, lambda: dies(tokenized_batches(ROWS, tokenizer, LIMITS))),
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    [left] = tmp_path.glob("*.partial")
    kept = keep(tmp_path, tokenizer)
    assert found(TokenizedPairs.in_folder(kept)) == expected(tokenizer)
    assert not left.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_error_on_the_way_leaves_nothing(error: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    def fails() -> Iterator[TokenBatch]:
        yield from tokenized_batches(ROWS[:5], tokenizer, LIMITS)
        raise error

    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError):
        token_files.kept_tokens(tmp_path, {"data": "d"}, fails)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert found(TokenizedPairs.in_folder(keep(tmp_path, tokenizer))) == expected(tokenizer)


def test_a_full_disk_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Iterator[TokenBatch]:
        yield from ()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nash.training.token_cache.tokenized_batches", full)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    counted = Counted.__new__(Counted)
    counted.cache, counted.tokenizer_folder = tmp_path / "tokens", folder
    with pytest.raises(DiskFullError, match="has 0 MB free"):
        counted.pairs()


def test_two_processes_make_them_once(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    begun, go_on = FORK.Event(), FORK.Event()
    said: Any = FORK.Queue()

    def slowly() -> Iterator[TokenBatch]:
        begun.set()
        go_on.wait(60)
        yield from tokenized_batches(ROWS, tokenizer, LIMITS)

    def never() -> Iterator[TokenBatch]:
        yield from ()
        raise AssertionError("tokenized twice")

    def waits() -> None:
        token_files.kept_tokens(tmp_path, {"data": "d"}, never, say=said.put)

    first = FORK.Process(target=token_files.kept_tokens, args=(tmp_path, {"data": "d"}, slowly))
    first.start()
    assert begun.wait(60)
    second = FORK.Process(target=waits)
    second.start()
    assert "another process is tokenizing" in said.get(timeout=60)
    go_on.set()
    for process in (first, second):
        process.join(60)
        assert process.exitcode == 0
    assert found(TokenizedPairs.in_folder(keep(tmp_path, tokenizer))) == expected(tokenizer)


def test_a_file_of_rows_gives_what_the_rows_give(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\r\n".join(json.dumps({"source": row.source, "target": list(row.targets)}) for row in ROWS))
    data = DataRecipe(train=file, validation=file)
    tokenizer = load_tokenizer(folder)
    rows = RowFile(file, data)
    assert len(rows) == len(ROWS)
    assert found(TokenizedPairs.under(data, rows, tokenizer)) == found(TokenizedPairs.under(data, ROWS, tokenizer))
