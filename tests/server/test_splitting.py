import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.markup import Markup
from server.text.splitting import fitting, sentences, windows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \n ", []),
        ("One.", ["One."]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It costs 3.50 today. So what?", ["It costs 3.50 today.", "So what?"]),
        ("Dr. Who met J. R. Smith. He left.", ["Dr. Who met J. R. Smith.", "He left."]),
        ("z.B. Das. Und das.", ["z.B. Das.", "Und das."]),
        ('"Stop." She went. (Really!) Yes.', ['"Stop."', "She went.", "(Really!)", "Yes."]),
        ("e.g. this one. And more", ["e.g. this one.", "And more"]),
        ("title\n\nText here", ["title", "Text here"]),
        ("今日は。元気\uff1fはい", ["今日は。", "元気\uff1f", "はい"]),
        ("Wait... what? ok", ["Wait... what? ok"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert [piece.text for piece in sentences(text)] == expected


@given(st.text(alphabet="ab .!?\n。", max_size=60), st.integers(1, 12))
def test_nothing_is_lost_and_everything_fits(text: str, most: int) -> None:
    def room(part: str) -> int:
        return min(len(part), most)

    for pieces in (sentences(text), list(windows(text, room)), list(fitting(sentences(text), room))):
        assert all(text[piece.start : piece.stop] == piece.text == piece.text.strip() != "" for piece in pieces)
        assert [p.start for p in pieces] == sorted(p.start for p in pieces)
        assert "".join("".join(piece.text for piece in pieces).split()) == "".join(text.split())
    assert all(len(piece.text) <= most for piece in windows(text, room))
    assert all(len(piece.text) <= most for piece in fitting(sentences(text), room))


def test_windows_end_between_words() -> None:
    pieces = list(windows("one two three four", lambda part: 9))
    assert [piece.text for piece in pieces] == ["one two", "three", "four"]
    assert [piece.text for piece in windows("abcdefgh", lambda part: 3)] == ["abc", "def", "gh"]
    assert [piece.text for piece in windows("ab", lambda part: 0)] == ["a", "b"]


@pytest.mark.parametrize("unit", [".", "A. ", "...", "\n", ". ", "Dr. A", "<", "<!--", "<a", "&", " ", '.")'])
def test_hostile_texts_take_no_longer_than_others(unit: str) -> None:
    """Quadratic, each of these would take minutes; the suite's own limit would end it."""
    text = unit * (300_000 // len(unit))
    assert "".join(piece.text for piece in sentences(text)).replace(" ", "") == "".join(text.split())
    markup = Markup(text)
    assert len(markup.with_texts(markup.texts)) >= len(text)
