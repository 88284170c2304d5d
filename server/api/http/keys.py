"""Who may call: bearer tokens, stored only as hashes.

The file has one line per key, `SCOPE SHA256 [rate=N] [burst=N] [concurrency=N] [NAME]`. SCOPE is `infer` or `admin`
(which includes `infer`); SHA256 is `printf %s "$KEY" | sha256sum`. Empty lines and lines that begin with `#` are
skipped. The file is read again when it changes.
"""

import contextlib
import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from pathlib import Path

from server.api.http.key_limits import LIMIT_NAMES, KeyLimits, KeyUse
from server.errors import ForbiddenError, RateLimitedError, SettingsError, UnauthorizedError

_SHA256 = re.compile("[0-9a-f]{64}")
_logger = logging.getLogger(__name__)


class Scope(StrEnum):
    """What a key allows."""

    INFER = "infer"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class _Key:
    scope: Scope
    digest: str
    limits: KeyLimits


class KeyRing:
    """The keys of one file."""

    def __init__(self, path: Path, on_limited: Callable[[], None] = lambda: None) -> None:
        """Read the file. `on_limited` hears of every request that a key's limits refuse.

        Raises:
            SettingsError: the file cannot be read or holds no key.
        """
        self._path = path
        self._on_limited = on_limited
        self._uses: dict[str, KeyUse] = {}  # by digest
        self._stamp = _stamp(path)
        self._keys, faults = _read(path)
        if faults:
            raise SettingsError(faults[0])
        if not self._keys:
            raise SettingsError(f"{path} holds no key: write a line 'infer SHA256' for each")

    def check(self, authorization: str | None, needed: Scope) -> None:
        """Check the key of a request.

        Raises:
            UnauthorizedError: no bearer token, or one that is not in the file.
            ForbiddenError: the key's scope is too narrow.
        """
        self._find(authorization, needed)

    @contextlib.contextmanager
    def open_request(self, authorization: str | None) -> Iterator[KeyUse]:
        """Check the key of a request that makes work, and hold the request open within the key's limits.

        Raises:
            UnauthorizedError: as above.
            RateLimitedError: the key asks for more than it may.
        """
        key = self._find(authorization, Scope.INFER)
        with contextlib.ExitStack() as stack:
            try:
                use = stack.enter_context(self._uses.setdefault(key.digest, KeyUse()).open_request(key.limits))
            except RateLimitedError:
                self._on_limited()
                raise
            yield use

    def _find(self, authorization: str | None, needed: Scope) -> _Key:
        self._reread()
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UnauthorizedError("a key is needed: send it as 'Authorization: Bearer KEY'")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        # Every key is compared, in constant time, so that the time taken reveals nothing about any of them.
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not found:
            raise UnauthorizedError("the key is not known: check it, or ask the operator for one")
        if needed is Scope.ADMIN and all(key.scope is not Scope.ADMIN for key in found):
            raise ForbiddenError("the key is for inference only: use one with the scope admin")
        return found[0]

    def _reread(self) -> None:
        """Take up a changed file. What it no longer says is no longer a key: a mistake must not leave one in force."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._keys, faults = _read(self._path)
        known = {key.digest for key in self._keys}
        self._uses = {digest: use for digest, use in self._uses.items() if digest in known}
        for fault in faults:
            _logger.error("%s", fault)
        if not self._keys:
            _logger.error("%s holds no key any more: every request that needs one is refused", self._path)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """How the file looks; None if it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _names_a_limit(word: str) -> bool:
    return word.partition("=")[0] in LIMIT_NAMES and "=" in word


def _read(path: Path) -> tuple[tuple[_Key, ...], list[str]]:
    """The keys of the well-formed lines, and what is wrong with the others or the whole."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return (), [f"--api-keys {path}: {error}: give a text file that can be read"]
    keys, faults = [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or words[0] not in set(Scope) or not _SHA256.fullmatch(words[1]):
            faults.append(
                f"{path}, line {number}: write 'infer SHA256' or 'admin SHA256', optionally followed by rate=N, "
                "burst=N, concurrency=N and a name"
            )
            continue
        try:
            limits = KeyLimits.parse(list(takewhile(_names_a_limit, words[2:])))
        except ValueError as error:
            faults.append(f"{path}, line {number}: {error}")
            continue
        keys.append(_Key(scope=Scope(words[0]), digest=words[1], limits=limits))
    return tuple(keys), faults
