import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from server.errors import InvalidInputError, StartError
from server.text.tokenization import TextCodec
from tests.tiny_models import EOS_ID, build_tokenizer

NO_EOS = 10**6


def byte_level() -> TextCodec:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return TextCodec(tokenizer, NO_EOS)


def byte_fallback() -> TextCodec:
    """As sentencepiece vocabularies decode: pieces with a sign for blanks, and single bytes."""
    pieces = [f"<0x{i:02X}>" for i in range(256)] + ["▁a", "b", "▁"]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return TextCodec(tokenizer, NO_EOS)


def metaspace() -> TextCodec:
    pieces = ["▁P", "▁", "a", "▁▁b", "."]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="a"))
    tokenizer.decoder = decoders.Metaspace()
    return TextCodec(tokenizer, NO_EOS)


CODECS = [(byte_level(), 256), (byte_fallback(), 259), (metaspace(), 5), (TextCodec(build_tokenizer(), EOS_ID), 30)]
GENERATIONS = st.sampled_from(CODECS).flatmap(
    lambda pair: st.tuples(
        st.just(pair[0]),
        # Single bytes and whole pieces in turn, else nearly all sequences would be broken characters.
        st.lists(st.integers(0, pair[1] - 1) | st.integers(max(0, pair[1] - 4), pair[1] - 1), min_size=1, max_size=12),
    )
)


def test_a_piece_is_the_token_itself_whatever_its_number() -> None:
    codec, fewer = metaspace(), TextCodec(Tokenizer(models.WordLevel({".": 0, "▁P": 1}, unk_token=".")), NO_EOS)
    assert codec.piece(0) == fewer.piece(1) == "▁P"
    assert codec.piece(5) == "5"  # a row of the model that no token has


@given(GENERATIONS)
def test_streamed_texts_joined_are_the_decoded_whole(generation: tuple[TextCodec, list[int]]) -> None:
    codec, ids = generation
    stream = codec.stream()
    texts = [stream.push(token) for token in ids[:-1]]
    assert "".join([*texts, stream.finish(ids[-1])]) == codec.decode(ids)


@given(st.text(alphabet="aé漢😀 ", max_size=8))
def test_a_character_of_several_tokens_comes_whole(text: str) -> None:
    ids = list((text + "!").encode())
    stream = byte_fallback().stream()
    texts = [stream.push(token) for token in ids[:-1]]
    texts.append(stream.finish(ids[-1]))
    assert "\ufffd" not in "".join(texts)


def encoded(
    codec: TextCodec,
    text: str,
    *,
    where: str = "inputs",
    limit_tokens: int = 9,
    truncate: int | None = None,
    language: int | None = None,
) -> list[int]:
    [ids] = asyncio.run(
        codec.encode([text], fields=[where], limit_tokens=limit_tokens, truncate=truncate, language=language)
    )
    return ids.ids


def encode(text: str, *, limit: int = 10, truncate: int | None = None) -> list[int]:
    codec = TextCodec(build_tokenizer(), EOS_ID)
    return encoded(codec, text, where="inputs[2]", limit_tokens=limit, truncate=truncate)


def test_sources_end_with_the_end_token() -> None:
    assert encode("abc") == [3, 4, 5, EOS_ID]
    without = build_tokenizer()
    without.post_processor = None
    codec = TextCodec(without, EOS_ID)
    assert encoded(codec, "abc", truncate=None) == [3, 4, 5, EOS_ID]


AROUND = {  # a template, and how a source of three characters is framed; 0 is <pad>, 2 <unk>: two tokens to frame with
    "BART": ("<unk> $A </s>", [2, 3, 4, 5, EOS_ID]),
    "mBART": ("$A </s> <unk>", [3, 4, 5, EOS_ID, 2]),
    "NLLB": ("<pad> $A </s>", [0, 3, 4, 5, EOS_ID]),
    "a beginning alone": ("<unk> $A", [2, 3, 4, 5, EOS_ID]),
}


@pytest.mark.parametrize(("template", "expected"), AROUND.values(), ids=AROUND)
def test_what_a_tokenizer_puts_around_a_text_stays(template: str, expected: list[int]) -> None:
    tokenizer = build_tokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<pad>", 0), ("</s>", EOS_ID), ("<unk>", 2)]
    )
    codec = TextCodec(tokenizer, EOS_ID)

    def encode_framed(text: str, *, truncate: int | None = None) -> list[int]:
        return encoded(codec, text, where="inputs", truncate=truncate)

    assert encode_framed("abc") == expected
    assert encode_framed("abcdefghi", truncate=len(expected)) == expected
    with pytest.raises(InvalidInputError, match="inputs is empty"):
        encode_framed("")


def test_an_end_token_in_the_text_is_not_doubled_without_a_template() -> None:
    tokenizer = build_tokenizer()
    tokenizer.post_processor = None
    codec = TextCodec(tokenizer, EOS_ID)
    assert encoded(codec, "ab</s>", truncate=None) == [3, 4, EOS_ID]
    assert encoded(codec, "abc</s>", truncate=3) == [3, 4, EOS_ID]


def test_limits_name_the_numbers_and_the_remedy() -> None:
    assert len(encode("a" * 9)) == 10
    with pytest.raises(
        InvalidInputError, match=r'inputs\[2\] has 11 tokens, but the model takes at most 10.*"truncate": 10'
    ):
        encode("a" * 10)
    with pytest.raises(InvalidInputError, match=r"inputs\[2\] is empty"):
        encode("")


def test_truncation_keeps_the_beginning_and_the_end_token() -> None:
    assert encode("abcdef", truncate=3) == [3, 4, EOS_ID]
    assert encode("ab", truncate=3) == [3, 4, EOS_ID]
    assert len(encode("a" * 10_000, limit=10, truncate=10)) == 10
    with pytest.raises(InvalidInputError, match="has 11 tokens"):
        encode("a" * 50, limit=10, truncate=11)


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"tokenizer\.json is missing: save the model with a fast tokenizer"):
        TextCodec.load(tmp_path, EOS_ID)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StartError, match=r"tokenizer\.json is not a tokenizer"):
        TextCodec.load(tmp_path, EOS_ID)


def test_settings_that_cut_or_pad_sources_are_taken_out_of_the_file(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = TextCodec.load(tmp_path, EOS_ID)
    ids = encoded(codec, "abcd", truncate=None)
    assert ids == [3, 4, 5, 6, EOS_ID]


@given(GENERATIONS, st.integers(1, 4))
def test_what_follows_a_prefix_is_the_same_in_a_stream_and_at_once(
    generation: tuple[TextCodec, list[int]], taken: int
) -> None:
    codec, ids = generation
    prefix, rest = ids[:taken], ids[taken:]
    stream = codec.stream(prefix)
    texts = [stream.push(token) if i < len(rest) - 1 else stream.finish(token) for i, token in enumerate(rest)]
    assert "".join(texts) == codec.decode(rest, prefix)


def test_the_text_behind_a_prefix_keeps_the_blank_between_them() -> None:
    codec = metaspace()
    assert codec.decode([0, 4]) == "P."
    assert codec.decode([0, 4], prefix=[0]) == " P."
    assert (codec.decode_one(0, None), codec.decode_one(0, 2)) == ("P", " P")


def test_a_prefix_has_nothing_around_it() -> None:
    codec = TextCodec(build_tokenizer(), EOS_ID)
    assert asyncio.run(codec.encode_prefix("abc", where="x", limit_tokens=9)) == [3, 4, 5]
    assert asyncio.run(codec.encode_prefix("a" * 4096, where="x", limit_tokens=9)) == [3] * 4096
    with pytest.raises(InvalidInputError, match="x has 4097 characters: give at most 4096"):
        asyncio.run(codec.encode_prefix("a" * 4097, where="x", limit_tokens=9))


def test_what_cannot_fit_is_not_tokenized() -> None:
    codec = TextCodec(build_tokenizer(), EOS_ID)
    with pytest.raises(InvalidInputError, match=r"inputs has 1000000 characters.*no more than 4096"):
        encoded(codec, "a" * 1_000_000)
    assert encoded(codec, "a" * 1_000_000, truncate=3) == [3, 3, EOS_ID]


def test_others_run_while_a_long_text_is_tokenized() -> None:
    codec = TextCodec(build_tokenizer(), EOS_ID)

    async def scenario() -> int:
        work, turns = asyncio.create_task(codec._encodings(["ab " * 400_000], add_special_tokens=True)), 0
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
        await work
        return turns

    assert asyncio.run(scenario()) > 100


def languages() -> TextCodec:
    """As NLLB's tokenizers frame a text, with M2M100's way to write a language too."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(["eng_Latn", "fra_Latn", "__de__"])
    ids = {token: tokenizer.token_to_id(token) for token in ("eng_Latn", "</s>")}
    tokenizer.post_processor = TemplateProcessing(single="eng_Latn $A </s>", special_tokens=list(ids.items()))
    return TextCodec(tokenizer, EOS_ID)


def test_languages_have_tokens() -> None:
    codec = languages()
    english, french, german = 30, 31, 32
    assert codec.language_id("fra_Latn", where="x") == french
    assert codec.language_id("de", where="x") == codec.language_id("__de__", where="x") == german
    assert codec.token_id("de", where="x") == german
    assert codec.token_id("c", where="x") == 5

    def encode_in(language: int | None) -> list[int]:
        return encoded(codec, "ab", where="x", truncate=None, language=language)

    assert encode_in(None) == [english, 3, 4, EOS_ID]
    assert encode_in(french) == [french, 3, 4, EOS_ID]
    with pytest.raises(InvalidInputError, match=r"x is not a language of this model: use __de__, eng_Latn, fra_Latn$"):
        codec.language_id("fr", where="x")
    with pytest.raises(
        InvalidInputError, match=r"x is not a token of this model's tokenizer.*or give a language: __de__"
    ):
        codec.token_id("fr", where="x")
    with pytest.raises(InvalidInputError, match="x is given, but this model's tokenizer has no languages: leave it"):
        TextCodec(build_tokenizer(), EOS_ID).language_id("fr", where="x")
