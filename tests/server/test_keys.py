import hashlib
import os
from pathlib import Path

import pytest

from server.api.http.keys import KeyRing, Scope
from server.errors import ForbiddenError, SettingsError, UnauthorizedError


def line(scope: str, key: str) -> str:
    return f"{scope} {hashlib.sha256(key.encode()).hexdigest()} someone's\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("# who may call\n\n" + line("infer", "small") + line("admin", "great"))
    return file


def test_keys_open_what_their_scope_covers(path: Path) -> None:
    ring = KeyRing(path)
    ring.check("Bearer small", Scope.INFER)
    ring.check("bearer great", Scope.INFER)
    ring.check("Bearer great", Scope.ADMIN)
    with pytest.raises(ForbiddenError, match="inference only"):
        ring.check("Bearer small", Scope.ADMIN)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic small", "small", "Bearer other"])
def test_anything_else_is_refused(path: Path, authorization: str | None) -> None:
    with pytest.raises(UnauthorizedError):
        KeyRing(path).check(authorization, Scope.INFER)


def test_the_file_is_read_again_when_it_changes(path: Path) -> None:
    ring = KeyRing(path)
    path.write_text(line("infer", "new"))
    os.utime(path, ns=(1, 1))
    ring.check("Bearer new", Scope.INFER)
    with pytest.raises(UnauthorizedError):
        ring.check("Bearer small", Scope.INFER)
    path.write_text("nonsense\n" + line("admin", "great"))
    ring.check("Bearer great", Scope.ADMIN)
    with pytest.raises(UnauthorizedError):
        ring.check("Bearer new", Scope.INFER)


@pytest.mark.parametrize("how", ["emptied", "deleted", "unreadable"])
def test_a_file_without_keys_opens_nothing_and_a_new_one_does(how: str, path: Path) -> None:
    ring = KeyRing(path)
    ring.check("Bearer small", Scope.INFER)
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "emptied" else b"\xff\xfe")
    for _ in range(2):
        with pytest.raises(UnauthorizedError):
            ring.check("Bearer small", Scope.INFER)
    path.write_text(line("infer", "small"))
    ring.check("Bearer small", Scope.INFER)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# none\n", "holds no key"),
        ("infer\n", "line 1: write 'infer SHA256'"),
        ("\nroot " + "0" * 64, "line 2"),
        ("infer secret-in-clear", "line 1"),
    ],
)
def test_a_bad_file_is_named_at_the_start(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        KeyRing(file)
    with pytest.raises(SettingsError, match="No such file"):
        KeyRing(tmp_path / "nothing")
