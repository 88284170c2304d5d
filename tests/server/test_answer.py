import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from server.engine.interface.results import FinishReason, Hypothesis
from server.text.answer import Answer, beginning_of_a_stop, first_stop
from server.text.tokenization import TextCodec

NO_EOS = 10**6
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level() -> TextCodec:
    """Every byte is a token, so that most characters are several."""
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(ALPHABET)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return TextCodec(tokenizer, NO_EOS)


CODEC = byte_level()


def tokens_of(text: str) -> list[int]:
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [ALPHABET.index(character) for piece, _ in pieces for character in piece]


def told(text: str, stops: list[str]) -> tuple[list[str], Answer]:
    """What is told with each token, until it stops."""
    answer, ids = Answer(CODEC, stops=stops), tokens_of(text)
    texts = []
    for i, token in enumerate(ids):
        texts.append(answer.add(token, None, last=i == len(ids) - 1).text)
        if answer.stopped:
            break
    return texts, answer


def test_the_text_ends_before_the_stop_string_with_the_token_that_completes_it() -> None:
    texts, answer = told("one END two", ["END"])
    assert (texts, answer.text, answer.stopped) == ([*"one ", "", "", ""], "one ", True)


def test_what_may_begin_a_stop_string_is_told_once_it_does_not() -> None:
    texts, answer = told("a EN EX EN", ["END"])
    assert texts == ["a", " ", "", "", "EN ", "", "EX", " ", "", "EN"]
    assert not answer.stopped


def test_characters_of_several_tokens_stop_and_are_held_back_too() -> None:
    texts, answer = told("aé漢😀b", ["漢😀"])
    assert (answer.text, answer.stopped) == ("aé", True)
    assert len(texts) == 1 + 2 + 3 + 4
    assert told("aé漢b", ["漢😀"])[1].text == "aé漢b"


@pytest.mark.parametrize(
    ("text", "stops", "begin"),
    [
        ("abc", ["b", "abc"], 1),  # "b" is complete first
        ("abc", ["c", "abc"], 0),  # both at once: the longer
        ("aab", ["ab"], 1),
        ("abc", ["x"], None),
        ("abc", [], None),
    ],
)
def test_the_stop_string_that_is_complete_first_counts(text: str, stops: list[str], begin: int | None) -> None:
    assert first_stop(text, stops) == begin


def test_the_longest_possible_beginning_is_held_back() -> None:
    assert beginning_of_a_stop("xaba", ["abac", "bax"]) == 3
    assert beginning_of_a_stop("xab", ["b"]) == 0
    assert beginning_of_a_stop("x", []) == 0


def whole_of(text: str, score: float | None = None) -> Hypothesis:
    ids = tokens_of(text)
    logprobs = [-float(i) for i in range(len(ids))]
    return Hypothesis(tokens=ids, finish_reason=FinishReason.LENGTH, score=score, logprobs=logprobs, top_tokens=[])


def test_an_answer_that_has_begun_is_completed_up_to_a_stop_string() -> None:
    hypothesis = whole_of("one END two", score=-1.5)
    answer = Answer(CODEC, stops=["END"])
    answer.add(hypothesis.tokens[0], 0.0)
    rest = answer.complete(hypothesis)
    assert [token.id for token in rest] == hypothesis.tokens[1:7]
    assert [token.logprob for token in rest] == hypothesis.logprobs[1:7]
    assert (answer.text, answer.generated_tokens, answer.score) == ("one ", 7, -1.5)
    assert answer.finish_reason is FinishReason.STOP
    assert answer.complete(hypothesis) == []


def test_a_whole_answer_is_what_its_tokens_say_one_by_one() -> None:
    hypothesis = whole_of("aé漢😀b")
    by_token = Answer(CODEC, tokens_of("é"))
    by_token.complete(hypothesis)
    whole = Answer.whole(CODEC, tokens_of("é"), hypothesis)
    assert whole.text == by_token.text == "aé漢😀b"
    assert whole.generated_tokens == by_token.generated_tokens == len(hypothesis.tokens)
    assert whole.finish_reason is by_token.finish_reason is FinishReason.LENGTH
    assert (whole.tokens, len(by_token.tokens)) == ([], len(hypothesis.tokens))


SHORT = st.text(alphabet="abé漢", max_size=12)


@given(SHORT.filter(bool), st.lists(st.text(alphabet="abé漢", min_size=1, max_size=4), max_size=3))
def test_however_tokens_cut_a_text_it_is_told_up_to_the_stop_string(text: str, stops: list[str]) -> None:
    ends = [len(text[:end]) for end in range(1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    expected = text
    if ends:
        expected = text[: ends[0] - max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))]
    texts, answer = told(text, stops)
    assert "".join(texts) == answer.text == expected
    assert answer.stopped == bool(ends)
