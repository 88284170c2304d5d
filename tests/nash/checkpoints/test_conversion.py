"""Made tokenizers against transformers' classes and SentencePiece itself: the same tokens, the same text back."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nash.checkpoints.conversion import fast_form
from nash.checkpoints.proof import TEXTS, check_equal
from nash.errors import RequestError
from tests.nash.saved_checkpoints import byt5_files, m2m100_files, marian_files, source_lines, target_lines

# Characters of the vocabulary and of none, spaces of many kinds, ligatures, and what looks like a mark or a language.
_ALPHABET = "abcdefgh  \t.,'(äßéü漢字ﬀ①Ω>><<▁_\u00a0\u3000\n"
MADE = {
    "marian": marian_files,
    "m2m100": m2m100_files,
    "m2m100 in unigrams": lambda folder: m2m100_files(folder, "unigram"),
    "byt5": byt5_files,
}


Both = tuple[Tokenizer, PreTrainedTokenizerBase]


@pytest.fixture(scope="module", params=MADE)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The made tokenizer, read from its file, and the class."""
    folder = MADE[request.param](tmp_path_factory.mktemp("made") / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not tokenizer.is_fast
    return Tokenizer.from_str(fast_form(tokenizer, folder).to_str()), tokenizer


def random_texts(count: int) -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices(_ALPHABET, k=generator.randint(1, 24))) for _ in range(count)]


def test_the_same_tokens_and_texts(both: Both) -> None:
    made, tokenizer = both
    texts = [*TEXTS, *random_texts(500), *source_lines()[:200], *target_lines()[:200]]
    check_equal(made, tokenizer, texts, texts, "made")


def test_any_tokens_have_the_same_text(both: Both) -> None:
    """Tokens that no text has too, such as pieces of the other language and single bytes of a character."""
    made, tokenizer = both
    generator = random.Random(1)
    for _ in range(500):
        ids = [generator.randrange(len(tokenizer)) for _ in range(generator.randint(0, 8))]
        assert made.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True), ids


def test_special_tokens_in_a_text(both: Both) -> None:
    made, tokenizer = both
    for text in ("a</s>b", "a <pad> b", "<unk>", "x__fr__ y", ">>deu<< the value", ">>fra<<the value", ">>fra<<"):
        assert made.encode(text).ids == tokenizer(text).input_ids, text


def test_a_language_is_what_the_folder_says(tmp_path: Path) -> None:
    folder = m2m100_files(tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"src_lang": "ja"}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = fast_form(tokenizer, folder)
    assert made.encode("the value").tokens[0] == "__ja__"
    assert made.get_added_tokens_decoder()[tokenizer.get_lang_id("de")].special


def test_an_unknown_run_of_characters_may_be_a_token(tmp_path: Path) -> None:
    """SentencePiece gives it back as one piece, and MarianTokenizer looks that up; half of it is unknown."""
    folder = marian_files(tmp_path / "m")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["漢字"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = fast_form(tokenizer, folder)
    texts = ["漢字", "a漢字b 漢字", "漢", "漢字漢", "ß漢字", "ä", "ää"]
    assert tokenizer("漢字").input_ids[-2] == vocabulary["漢字"] == made.encode("漢字").ids[-2]
    check_equal(made, tokenizer, texts, texts, "made")


def test_a_difference_is_one_line_with_the_text_and_both_tokens(tmp_path: Path) -> None:
    """A piece that vocab.json lacks is unknown to MarianTokenizer, and cut into others here."""
    folder = marian_files(tmp_path / "m")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    lost = "▁the"
    vocabulary[lost.upper()] = vocabulary.pop(lost)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = fast_form(tokenizer, folder)
    check_equal(made, tokenizer, ["value"], [], "opus")
    with pytest.raises(RequestError) as refusal:
        check_equal(made, tokenizer, ["value", "the value"], [], "opus")
    message = str(refusal.value)
    assert message.startswith("opus: tokenizer.json, which serving reads, differs")
    ids = made.encode("the value").ids, tokenizer("the value").input_ids
    assert all(str(each) in message for each in ("'the value'", *ids))
    assert "\n" not in message


def test_two_vocabularies_are_refused(tmp_path: Path) -> None:
    folder = marian_files(tmp_path / "m")
    (folder / "target_vocab.json").write_text((folder / "vocab.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"separate_vocabs": True}))
    with pytest.raises(RequestError, match=r"one tokenizer\.json holds only one"):
        fast_form(AutoTokenizer.from_pretrained(folder), folder)


def test_a_word_model_is_refused(tmp_path: Path) -> None:
    """SentencePiece has kinds that `tokenizers` cannot express."""
    from nash.checkpoints.sentencepiece import read_model
    from tests.nash.saved_checkpoints import train

    with pytest.raises(RequestError, match="neither a Unigram nor a BPE model"):
        read_model(train(tmp_path / "words.spm", source_lines(), model_type="word"))
    (tmp_path / "torn.spm").write_bytes(b"\n\xff\xff")
    with pytest.raises(RequestError, match=r"torn\.spm is not a SentencePiece model"):
        read_model(tmp_path / "torn.spm")
