"""How a model is named: `NAME`, `NAME@ALIAS`, `NAME:VERSION` or `NAME@sha256:DIGEST`."""

import re
from dataclasses import dataclass

from model_store.errors import InvalidRequestError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9]{1,12}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DIGEST_MARK = "sha256:"  # no alias has a colon

DEFAULT_ALIAS, DENSE_ALIAS = "default", "dense"
# What a bare NAME means, the first that there is: in the store among its aliases, in a request among what is loaded.
MEANT_BY_A_NAME = (DEFAULT_ALIAS, DENSE_ALIAS)


def check_name(value: str, what: str) -> str:
    """Return `value` if it is a legal name or alias.

    Raises:
        InvalidRequestError: it is not; the message contains `what` ("model name", "alias").
    """
    if not _NAME.fullmatch(value):
        raise InvalidRequestError(
            f"{what} {value!r} is not valid: use 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or a digit"
        )
    return value


@dataclass(frozen=True, kw_only=True)
class Ref:
    """A parsed reference. At most one of `alias`, `version` and `digest` is set."""

    name: str
    alias: str | None = None
    version: int | None = None
    digest: str | None = None  # of the manifest, in hex: whatever is renamed or published anew, this content or nothing

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """Parse one of the four forms; leading zeros in a version are accepted.

        Raises:
            InvalidRequestError: the text is none of them.
        """
        if "@" in text:
            name, alias = text.split("@", 1)
            if alias.startswith(_DIGEST_MARK):
                digest = alias.removeprefix(_DIGEST_MARK)
                if not _DIGEST.fullmatch(digest):
                    raise InvalidRequestError(
                        f"digest {digest!r} in {text!r} is not valid: use all 64 characters of 0-9 and a-f, "
                        "as `nash models show` and GET /models tell them"
                    )
                return cls(name=check_name(name, "model name"), digest=digest)
            return cls(name=check_name(name, "model name"), alias=check_name(alias, "alias"))
        if ":" in text:
            name, number = text.split(":", 1)
            if not _VERSION.fullmatch(number) or int(number) == 0:
                raise InvalidRequestError(
                    f"version {number!r} in {text!r} is not valid: use a whole number of at most 12 digits from 1, "
                    f"as in {name}:7"
                )
            return cls(name=check_name(name, "model name"), version=int(number))
        return cls(name=check_name(text, "model name"))

    @property
    def is_bare(self) -> bool:
        """Whether it is only a name."""
        return self.alias is None and self.version is None and self.digest is None

    def __str__(self) -> str:
        if self.alias is not None:
            return f"{self.name}@{self.alias}"
        if self.digest is not None:
            return f"{self.name}@{_DIGEST_MARK}{self.digest}"
        return self.name if self.version is None else f"{self.name}:{self.version}"


def looks_like_path(text: str) -> bool:
    """Tell a path from a reference: a path contains a slash or starts with a dot."""
    return "/" in text or text.startswith(".")
