import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from nash.errors import RequestError
from nash.vocabulary.tokenizer_file import closed, document_of, fallback_ids, pieces_of, special_ids, text_of, trimmed
from tests.nash.task_tokenizers import KINDS, lines, trained

# Words that are known, words that are not, characters that no vocabulary has, and blanks where they do harm.
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(lines()),
        st.text(alphabet="aeinost.ABé☃漢 ", min_size=1, max_size=12),
        st.sampled_from(["  two  blanks ", "<pad>", "</s>x", "x</w>", "##a"]),
    ),
    min_size=1,
    max_size=6,
)


def without_the_rest(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tokenizer, dict[int, int]]:
    """The tokenizer with what the texts need, and the new ids of what is kept."""
    original, document = tokenizer.to_str(), document_of(tokenizer)
    used = {i for encoding in tokenizer.encode_batch(texts) for i in encoding.ids}
    needed = closed(document, used | special_ids(document))
    kept = needed | fallback_ids(document, needed)
    new_ids = {old: new for new, old in enumerate(sorted(kept))}
    return Tokenizer.from_str(text_of(trimmed(document, new_ids), original, sorted(kept))), new_ids


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)  # the first example trains the tokenizer
@given(texts=TEXTS)
def test_texts_are_split_as_before(kind: str, texts: list[str]) -> None:
    whole = Tokenizer.from_str(trained(kind).to_str())
    less, new_ids = without_the_rest(whole, texts)
    assert less.get_vocab_size() == len(new_ids) < whole.get_vocab_size()
    for before, after in zip(whole.encode_batch(texts), less.encode_batch(texts), strict=True):
        assert after.tokens == before.tokens
        assert after.ids == [new_ids[i] for i in before.ids]
        assert less.decode(after.ids) == whole.decode(before.ids)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "word level"])
def test_other_texts_are_spelt(kind: str) -> None:
    less, _ = without_the_rest(trained(kind), lines()[:20])
    words = "Unfathomable zebras quickly judged my vexing hypothesis"
    encoding = less.encode(words)
    assert "<unk>" not in encoding.tokens
    assert len(encoding.tokens) > len(trained(kind).encode(words).tokens)


@pytest.mark.parametrize("kind", ["byte-level", "unigram, bytes"])
def test_bytes_stay_for_every_character(kind: str) -> None:
    less, _ = without_the_rest(trained(kind), ["a"])
    assert less.decode(less.encode("☃漢").ids).strip() == "☃漢"


def test_letters_of_a_script_stay_together_unless_they_are_thousands() -> None:
    letters = ["a", "é", "ж", "я", "漢", "字", "한", "국", "!", "☃"]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="a"))
    document = document_of(tokenizer)
    assert fallback_ids(document, {0}) == {0, 1, 8}, "Latin letters, and ASCII always"
    assert fallback_ids(document, {2, 4, 6}) == {0, 2, 3, 4, 6, 8}, "Cyrillic; of the vast scripts what occurs"


def test_all_that_a_token_is_merged_from_stays() -> None:
    pieces = ["a", "b", "c", "d", "ab", "abc", "bc", "cd", "bcd"]
    merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("c", "d"), ("b", "cd"), ("bc", "d")]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    document = document_of(tokenizer)
    kept = {pieces[i] for i in closed(document, {pieces.index("abc")})}
    assert kept == {"abc", "ab", "a", "b", "c"}
    # bcd is made in two ways: which one a word takes depends on the word, so both stay
    kept = {pieces[i] for i in closed(document, {pieces.index("bcd")})}
    assert kept == {"bcd", "bc", "cd", "b", "c", "d"}
    less, _ = without_the_rest(tokenizer, ["abc"])
    assert json.loads(less.to_str())["model"]["merges"] == [["a", "b"], ["ab", "c"]]
    assert less.encode("abc").tokens == ["abc"]


def test_what_is_unknown_stays_as_dear_as_it_was() -> None:
    """By the lowest score: without its piece, ax would fall apart into a and something unknown."""
    vocabulary = [("<unk>", 0.0), ("a", -1.0), ("ax", -30.0), ("b", -50.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    assert tokenizer.encode("ax").tokens == ["ax"]
    less, new_ids = without_the_rest(tokenizer, ["ax"])
    assert 3 in new_ids
    assert less.encode("ax").tokens == ["ax"]


def test_scores_keep_their_last_bit() -> None:
    """The second is one that tokenizers reads a bit off, and would write as it read it."""
    scores = [f"-{digits}" for digits in ("3.481127186723755", "3.7431841623452122", "7.390998391658536", "1e1", "9")]
    vocabulary = ", ".join(f'["{piece}", {score}]' for piece, score in zip("abcde", scores, strict=True))
    original = '{"version": "1.0", "added_tokens": [], "model": {"type": "Unigram", "unk_id": 4, "vocab": [%s]}}'
    tokenizer = Tokenizer.from_str(original % vocabulary)
    kept = {0: 0, 1: 1, 2: 2, 4: 3}
    text = text_of(trimmed(document_of(tokenizer), kept), original % vocabulary, kept)
    assert [entry[1] for entry in json.loads(text, parse_float=str, parse_int=str)["model"]["vocab"]] == [
        scores[i] for i in kept
    ]
    assert document_of(tokenizer)["model"]["vocab"][1][1] != float(scores[1])
    found = document_of(Tokenizer.from_str(text))["model"]["vocab"]
    assert found == [document_of(tokenizer)["model"]["vocab"][i] for i in kept]


@pytest.mark.parametrize(
    "processor",
    [
        processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 5), ("</s>", 3)]),
        processors.RobertaProcessing(("</s>", 3), ("<s>", 5)),
        processors.Sequence([processors.ByteLevel(), processors.BertProcessing(("</s>", 3), ("<s>", 5))]),
    ],
)
def test_what_stands_around_a_text_gets_new_ids(processor: processors.PostProcessor) -> None:
    pieces = ["a", "b", "<unk>", "</s>", "c", "<s>", "<pad>"]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processor
    tokenizer.enable_padding(pad_id=6, pad_token="<pad>", length=5)
    document = document_of(tokenizer)
    assert special_ids(document) == {2, 3, 5, 6}
    kept = sorted(special_ids(document) | {1})
    less = Tokenizer.from_str(json.dumps(trimmed(document, {old: new for new, old in enumerate(kept)})))
    assert less.encode("b a").tokens == ["<s>", "b", "<unk>", "</s>", "<pad>"]
    assert less.encode("b a").ids == [3, 0, 1, 2, 4]
    assert pieces_of(document_of(less)) == {"b": 0, "<unk>": 1, "</s>": 2, "<s>": 3, "<pad>": 4}


def test_merges_that_are_dropped_at_random_are_refused() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[], dropout=0.1))
    with pytest.raises(RequestError, match=r"drops merges at random \(dropout is 0.1\).* set model.dropout to null"):
        document_of(tokenizer)
