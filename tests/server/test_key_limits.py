"""How much one key may ask for."""

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.api.http.key_limits import KeyLimits
from server.api.http.keys import KeyRing, Scope
from server.errors import RateLimitedError, SettingsError, UnauthorizedError

DIGEST = hashlib.sha256(b"small").hexdigest()
BEARER = "Bearer small"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr("server.api.http.key_limits.time.monotonic", lambda: now[0])

    def pass_s(seconds: float) -> None:
        now[0] += seconds

    return pass_s


def ring(tmp_path: Path, limits: str, on_limited: Callable[[], None] = lambda: None) -> KeyRing:
    file = tmp_path / "keys"
    file.write_text(f"infer {DIGEST} {limits}\n")
    return KeyRing(file, on_limited)


def ask(keys: KeyRing, texts: int = 1) -> None:
    with keys.open_request(BEARER) as use:
        use.charge(texts - 1)


def refused(keys: KeyRing) -> float:
    with pytest.raises(RateLimitedError) as caught:
        ask(keys)
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ("", KeyLimits()),
        ("rate=0.5", KeyLimits(rate=0.5, burst=1)),
        ("rate=20", KeyLimits(rate=20, burst=20)),
        ("concurrency=4 burst=3 rate=2", KeyLimits(rate=2, burst=3, concurrency=4)),
    ],
)
def test_limits_are_read(words: str, limits: KeyLimits) -> None:
    assert KeyLimits.parse(words.split()) == limits


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rate=0", "rate is '0': give a number above 0"),
        ("rate=nan someone", "rate is 'nan'"),
        ("rate=inf", "rate is 'inf'"),
        ("rate=1 rate=2", "rate is given twice"),
        ("concurrency=1.5", "concurrency is '1.5': give a whole number from 1"),
        ("burst=3", "a burst without a rate"),
    ],
)
def test_bad_limits_are_named_with_their_line(tmp_path: Path, words: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"line 1: .*{message}"):
        ring(tmp_path, words)


@pytest.mark.parametrize("name", ["", "someone's laptop", "team=7", "rated R"])
def test_a_line_without_limits_has_none(tmp_path: Path, name: str) -> None:
    keys = ring(tmp_path, name)
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(keys.open_request(BEARER))


def test_a_burst_and_then_a_rate(tmp_path: Path, clock: Callable[[float], None]) -> None:
    keys = ring(tmp_path, "rate=2 burst=3 someone")
    for _ in range(3):
        ask(keys)
    assert refused(keys) == pytest.approx(0.5)
    clock(0.25)
    assert refused(keys) == pytest.approx(0.25)
    clock(0.25)
    ask(keys)
    clock(100.0)
    for _ in range(3):
        ask(keys)
    refused(keys)


def test_every_text_of_a_list_counts(tmp_path: Path, clock: Callable[[float], None]) -> None:
    keys = ring(tmp_path, "rate=2 burst=3")
    ask(keys, texts=11)
    assert refused(keys) == pytest.approx(4.5), "eight too many, and one more"
    clock(4.5)
    ask(keys)


def test_so_many_at_once(tmp_path: Path, clock: Callable[[float], None]) -> None:
    heard: list[int] = []
    keys = ring(tmp_path, "concurrency=2", lambda: heard.append(1))
    with keys.open_request(BEARER), keys.open_request(BEARER):
        clock(6.0)
        refused(keys)
    assert refused_after_two(keys, clock) == pytest.approx(3.0), "of two that take six seconds, one ends in three"
    assert len(heard) == 2
    ask(keys)


def refused_after_two(keys: KeyRing, clock: Callable[[float], None]) -> float:
    with keys.open_request(BEARER), keys.open_request(BEARER):
        wait_s = refused(keys)
        clock(6.0)
    return wait_s


def test_limits_change_with_the_file_and_what_was_used_stays(tmp_path: Path, clock: Callable[[float], None]) -> None:
    keys = ring(tmp_path, "rate=1 burst=1")
    ask(keys)
    refused(keys)
    write(tmp_path, f"infer {DIGEST} rate=1 burst=9\n", 1)
    assert refused(keys) == pytest.approx(1.0)
    write(tmp_path, f"infer {DIGEST}\n", 2)
    for _ in range(20):
        ask(keys)
    write(tmp_path, f"infer {DIGEST} rate=-1\n", 3)
    with pytest.raises(UnauthorizedError):
        keys.check(BEARER, Scope.INFER)


def write(tmp_path: Path, text: str, stamp: int) -> None:
    (tmp_path / "keys").write_text(text)
    os.utime(tmp_path / "keys", ns=(stamp, stamp))
