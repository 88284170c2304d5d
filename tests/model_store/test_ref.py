import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import InvalidRequestError
from model_store.version.ref import Ref, check_name, looks_like_path

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)


@given(NAMES, NAMES | st.integers(1, 10**12 - 1) | st.binary(min_size=32, max_size=32) | st.none())
def test_round_trip(name: str, rest: str | int | bytes | None) -> None:
    ref = Ref(
        name=name,
        alias=rest if isinstance(rest, str) else None,
        version=rest if isinstance(rest, int) else None,
        digest=rest.hex() if isinstance(rest, bytes) else None,
    )
    assert Ref.parse(str(ref)) == ref


@pytest.mark.parametrize(
    ("text", "ref", "bare"),
    [
        ("g2p", Ref(name="g2p"), True),
        ("g2p@pruned", Ref(name="g2p", alias="pruned"), False),
        ("g2p:7", Ref(name="g2p", version=7), False),
        ("g2p:000007", Ref(name="g2p", version=7), False),
        ("t5.small-v1_1@a.b", Ref(name="t5.small-v1_1", alias="a.b"), False),
        ("g2p@sha256:" + "0a" * 32, Ref(name="g2p", digest="0a" * 32), False),
        ("g2p@sha256", Ref(name="g2p", alias="sha256"), False),
    ],
)
def test_grammar(text: str, ref: Ref, bare: bool) -> None:
    assert Ref.parse(text) == ref
    assert ref.is_bare is bare


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", ":", "@a", ":1", "G2P", ".g2p", "-g2p", "g/p", "../g2p", "g 2p", "g2p\n", "a" * 65),
        *("g2p@", "g2p@A", "g2p@a@b", "g2p@a:1", "g2p@" + "a" * 65),
        *("g2p:", "g2p:0", "g2p:-1", "g2p:1.0", "g2p:x", "g2p:٣", "g2p:1\n", "g2p:1:2", "g2p:1@a", "g2p:" + "1" * 13),
        *("g2p@sha256:", "g2p@sha256:" + "a" * 63, "g2p@sha256:" + "A" * 64, "g2p@sha256:" + "a" * 64 + "\n"),
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        Ref.parse(text)


@given(st.text(max_size=8))
def test_nothing_but_the_four_forms_gets_through(text: str) -> None:
    try:
        ref = Ref.parse(text)
    except InvalidRequestError:
        return
    assert check_name(ref.name, "name") == ref.name
    assert Ref.parse(str(ref)) == ref


@pytest.mark.parametrize(
    ("text", "path"),
    [("g2p", False), ("g2p@a", False), ("g2p:1", False), ("./g2p", True), (".", True), ("a/b", True), ("/a", True)],
)
def test_path_or_reference(text: str, path: bool) -> None:
    assert looks_like_path(text) is path
