"""What a variant must keep while it takes over, from a TOML file."""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from nash.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Slo:
    """Bounds that a step of a rollout is judged by; None: no bound."""

    max_error_ratio: float | None = (
        0.01  # failed, timed-out and crashed requests of all that were not the caller's fault
    )
    p95_ms: float | None = None  # of the requests that the new variant answered
    min_speedup: float | None = None  # of the new variant over the old one, geometric mean of the shadow's pairs
    min_agreement: float | None = None  # share of the pairs with the same or a close answer

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            RequestError: it cannot be read, a key is unknown, or a value is not a number from 0.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"--slo {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RequestError(f"--slo {path} is not TOML: {error}") from None
        known = [each.name for each in fields(cls)]
        for name, value in table.items():
            if name not in known:
                raise RequestError(f"{path}: {name!r} is not known: use {', '.join(known)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
                raise RequestError(f"{path}: {name} is {value!r}: give a number from 0")
        return cls(**table)
