"""Rows of task data, tokenized pairs, and batches of like lengths."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MBart50Tokenizer, MBartTokenizer, NllbTokenizer, PreTrainedTokenizerBase

from nash.data.examples import IGNORED, Collator, SimilarLengthSampler, TokenizedPairs
from nash.data.rows import RowFile, TaskRow, Texts, file_digest, read_rows, rows_at
from nash.errors import NashError, RequestError
from nash.modeling.folders import load_tokenizer
from nash.recipes.recipe import DataLayout
from tests.nash.task_tokenizers import bpe_model, metaspace_bpe
from tests.tiny_models import EOS_ID, VOCABULARY


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_rows(file: Path) -> None:
    file.write_text('{"source": "a b", "target": "x"}\n\n{"source": "c", "target": ["y", "z"], "more": 1}\n')
    assert read_rows(file) == [TaskRow(source="a b", targets=("x",)), TaskRow(source="c", targets=("y", "z"))]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_newline_ends_a_row(file: Path, separator: str) -> None:
    text = f"one{separator}two"
    # JSON requires control characters to be escaped; the others stand in a text as they are.
    row = json.dumps({"source": text, "target": "x"}, ensure_ascii=separator < " ")
    file.write_text(f"{row}\n{row}\n", encoding="utf-8")
    assert [r.source for r in read_rows(file)] == [text, text]


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
def test_line_endings(file: Path, ending: str) -> None:
    file.write_bytes(ending.join(['{"source": "a", "target": "x"}'] * 3).encode())
    assert len(read_rows(file)) == 3


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"source": "a"', "not valid JSON"),
        ('["a", "b"]', "not an object"),
        ('"text"', "not an object"),
        ('{"target": "x"}', "'source' is missing"),
        ('{"source": "a"}', "'target' is missing"),
        ('{"source": 3, "target": "x"}', "source is 3"),
        ('{"source": " ", "target": "x"}', "source is ' '"),
        ('{"source": "a", "target": null}', "target is None"),
        ('{"source": "a", "target": []}', "target is []"),
        ('{"source": "a", "target": ["x", 7]}', "target is ['x', 7]"),
        ('{"source": "a", "target": ""}', "target is ''"),
    ],
)
def test_a_bad_row_names_file_and_line(file: Path, line: str, says: str) -> None:
    file.write_text('{"source": "a", "target": "x"}\n\n' + line + "\n")
    with pytest.raises(RequestError) as refusal:
        read_rows(file)
    assert str(refusal.value).startswith(f"{file}, line 3: ")
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_used(file: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_rows(file)
    file.write_bytes(b'{"source": "\xff", "target": "x"}')
    with pytest.raises(RequestError, match="is not UTF-8"):
        read_rows(file)
    file.write_text("\n \n")
    with pytest.raises(RequestError, match="holds no rows"):
        read_rows(file)


def test_file_digest(file: Path) -> None:
    file.write_bytes(b"abc")
    assert file_digest(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def ids(text: str) -> list[int]:
    return [VOCABULARY[c] for c in text] + [EOS_ID]


def pairs(dense_dir: Path, rows: list[TaskRow], source: int = 99, target: int = 99) -> TokenizedPairs:
    tokenizer = load_tokenizer(dense_dir)
    return TokenizedPairs.of(rows, tokenizer, max_source_tokens=source, max_target_tokens=target)


def examples(made: TokenizedPairs) -> list[dict[str, Any]]:
    return [{k: v if k == "row" else v.tolist() for k, v in made[i].items()} for i in range(len(made))]


def test_every_target_makes_a_pair(dense_dir: Path) -> None:
    made = pairs(dense_dir, [TaskRow(source="ab", targets=("x", "yz")), TaskRow(source="c", targets=("x",))])
    assert examples(made) == [
        {"input_ids": ids("ab"), "labels": ids("x"), "row": 1},
        {"input_ids": ids("ab"), "labels": ids("yz"), "row": 1},
        {"input_ids": ids("c"), "labels": ids("x"), "row": 2},
    ]
    assert made.lengths().tolist() == [[3, 2], [3, 3], [2, 2]]
    assert made.cut == 0


SENTENCEPIECE = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁is", -1.0), ("▁the", -1.0)]
LANGUAGES = {"src_lang": "en_XX", "tgt_lang": "it_IT"}


@pytest.mark.parametrize(
    ("tokenizer", "source", "target"),
    [
        (MBart50Tokenizer(vocab=SENTENCEPIECE, **LANGUAGES), ["en_XX", "▁is", "</s>"], ["it_IT", "▁the", "</s>"]),
        (MBartTokenizer(vocab=SENTENCEPIECE, **LANGUAGES), ["▁is", "</s>", "en_XX"], ["▁the", "</s>", "it_IT"]),
        (
            NllbTokenizer(
                **bpe_model(metaspace_bpe, "<s>", "<pad>", "</s>", "<unk>"), src_lang="eng_Latn", tgt_lang="ita_Latn"
            ),
            ["eng_Latn", "▁is", "</s>"],
            ["ita_Latn", "▁the", "</s>"],
        ),
    ],
    ids=["mbart50", "mbart", "nllb"],
)
def test_either_side_has_its_own_language(
    tokenizer: PreTrainedTokenizerBase, source: list[str], target: list[str]
) -> None:
    row = TaskRow(source="is is is is", targets=("the the the",))
    made = TokenizedPairs.of([row], tokenizer, max_source_tokens=3, max_target_tokens=3)
    assert tokenizer.convert_ids_to_tokens(made.sources[0]) == source
    assert tokenizer.convert_ids_to_tokens(made.targets[0]) == target
    assert made.cut == 2
    served = tokenizer(row.source, truncation=True, max_length=3).input_ids
    assert made.sources[0].tolist() == served
    with pytest.raises(RequestError, match="a limit of 1 tokens has no room for the 2 that the tokenizer adds to"):
        TokenizedPairs.of([row], tokenizer, max_source_tokens=3, max_target_tokens=1)


def test_a_target_without_a_language_has_the_sources() -> None:
    """M2M100's class, whose vocabulary is made by a library of its own, fails where no language is set."""

    class Strict(MBart50Tokenizer):  # type: ignore[misc, unused-ignore]
        def _switch_to_target_mode(self) -> None:
            self.set_tgt_lang_special_tokens({"en_XX": "en_XX"}[self.tgt_lang])

    tokenizer = Strict(vocab=SENTENCEPIECE, src_lang="en_XX")
    assert tokenizer.tgt_lang is None
    made = TokenizedPairs.of(
        [TaskRow(source="is", targets=("the",))], tokenizer, max_source_tokens=3, max_target_tokens=3
    )
    assert tokenizer.convert_ids_to_tokens(made.targets[0]) == ["en_XX", "▁the", "</s>"]


def test_a_cut_keeps_the_end_token(dense_dir: Path) -> None:
    made = pairs(dense_dir, [TaskRow(source="abcdef", targets=("xyz", "x"))], source=4, target=3)
    assert examples(made) == [
        {"input_ids": ids("abc"), "labels": ids("xy"), "row": 1},
        {"input_ids": ids("abc"), "labels": ids("x"), "row": 1},
    ]
    assert made.cut == 3  # the source twice, the first target
    assert pairs(dense_dir, [TaskRow(source="abc", targets=("x",))], source=4, target=2).cut == 0


def test_collator() -> None:
    batch = Collator(pad_id=9)(
        [{"input_ids": [5, 1], "labels": [6, 7, 1], "row": 2}, {"input_ids": [5, 4, 1], "labels": [1], "row": 1}]
    )
    assert batch["input_ids"].tolist() == [[5, 1, 9], [5, 4, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[6, 7, 1], [1, IGNORED, IGNORED]]
    assert {t.dtype for t in batch.values()} == {torch.int64}


LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=60)


@settings(deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 7), seed=st.integers(0, 99), pool=st.integers(1, 4))
def test_every_epoch_is_a_permutation(lengths: list[tuple[int, int]], batch_size: int, seed: int, pool: int) -> None:
    sampler = SimilarLengthSampler(np.array(lengths), batch_size, seed, pool_batches=pool)
    assert len(sampler) == len(lengths)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(len(lengths)))


def sampler_of(count: int = 400, batch_size: int = 8, seed: int = 3) -> SimilarLengthSampler:
    generator = torch.Generator().manual_seed(1)
    return SimilarLengthSampler(torch.randint(1, 60, (count, 2), generator=generator).numpy(), batch_size, seed)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first, again, other = sampler_of(), sampler_of(), sampler_of(seed=4)
    torch.manual_seed(0)
    order = list(first)
    torch.manual_seed(1)
    assert list(first) == order == list(again)
    assert list(other) != order
    first.set_epoch(1)
    assert list(first) != order
    first.set_epoch(0)
    assert list(first) == order


def test_batches_hold_like_lengths_in_no_order() -> None:
    sampler = sampler_of()
    order = list(sampler)
    batches = [order[i : i + 8] for i in range(0, len(order), 8)]
    sources = [[sampler.lengths[i][0] for i in batch] for batch in batches]
    padded = sum(max(s) * len(s) for s in sources) / sum(map(sum, sources))
    assert padded < 1.05, "a random order would pad by more than half"
    longest = [max(s) for s in sources]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_the_short_batch_is_the_last() -> None:
    """Anywhere else it would shift every batch after it across two lengths."""
    sampler = sampler_of(count=403)
    order = list(sampler)
    for start in range(0, 400, 8):
        lengths = [sampler.lengths[i][0] for i in order[start : start + 8]]
        assert max(lengths) - min(lengths) <= 8


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"source": "ab\\ud800", "target": "AE"}', "surrogate"),
        ('{"source": "ab", "target": ["AE", "\\udfff"]}', "surrogate"),
        ('{"source": ' + "[" * 100_000, "not valid JSON"),
    ],
)
def test_what_no_tokenizer_can_read_is_a_bad_row(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"source": "a", "target": "b"}\n' + line + "\n")
    with pytest.raises(RequestError, match=rf"line 2: .*{says}"):
        read_rows(file)


def row_file(file: Path) -> RowFile:
    return RowFile(file, DataLayout())


def test_a_file_of_rows_is_read_on_every_walk(file: Path) -> None:
    """The last line needs no end, a line may be very long, and only a newline ends a row."""
    texts = ["a", "one\u2028two\x85three", "b" * 2_000_000]
    lines = [json.dumps({"source": text, "target": ["x", "y"]}, ensure_ascii=False) for text in texts]
    file.write_bytes("\r\n\r\n".join(lines).encode())
    rows = row_file(file)
    assert len(rows) == 3
    assert [row.source for row in rows] == [row.source for row in rows] == texts
    assert rows_at(rows, [2, 0, 2]) == [TaskRow(source=texts[i], targets=("x", "y")) for i in (2, 0, 2)]
    assert list(Texts(rows)) == [text for source in texts for text in (source, "x", "y")]
    assert list(rows) == read_rows(file)
    assert list(rows)[1] in rows
    assert TaskRow(source="c", targets=("x",)) not in rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "holds no rows"),
        (b"\r\n \n", "holds no rows"),
        (b'{"source": "a", "target": "x"}\n{"source": "a"', "line 2: not valid JSON"),
        (b'{"source": "a", "target": "x"}\n{"source": "\xff"}', r"not UTF-8 \(invalid start byte at byte 43, line 2\)"),
        (b'\xef\xbb\xbf{"source": "a"}', "line 1: column 'target' is missing"),
    ],
)
def test_a_file_of_rows_is_checked_as_a_whole_before_it_is_used(file: Path, text: bytes, says: str) -> None:
    file.write_bytes(text)
    with pytest.raises(RequestError, match=says):
        row_file(file)


def test_a_file_that_changes_under_a_command(file: Path) -> None:
    file.write_text('{"source": "a", "target": "x"}\n')
    rows = row_file(file)
    file.write_text('{"source": "ab", "target": "x"}\n')
    with pytest.raises(NashError, match=r"rows.jsonl has changed since this command began: call it again"):
        list(rows)


def test_rows_are_checked_only_as_far_as_they_are_asked_for(file: Path) -> None:
    file.write_text('{"source": "a", "target": "x"}\n[]\n')
    assert len(read_rows(file, most=1)) == 1


@settings(deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 7), seed=st.integers(0, 99), pool=st.integers(1, 4))
def test_the_order_is_that_of_sorted_pools(
    lengths: list[tuple[int, int]], batch_size: int, seed: int, pool: int
) -> None:
    """Spelled out with lists."""
    generator = torch.Generator().manual_seed(seed * 100_003)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * pool):
        chosen = sorted(order[start : start + batch_size * pool], key=lengths.__getitem__)
        batches += [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    full = [batch for batch in batches if len(batch) == batch_size]
    shuffled = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
    short = [batch for batch in batches if len(batch) < batch_size]
    sampler = SimilarLengthSampler(np.array(lengths), batch_size, seed, pool_batches=pool)
    assert list(sampler) == [i for batch in shuffled + short for i in batch]
