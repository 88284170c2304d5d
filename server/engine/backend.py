"""What an engine needs of whatever computes: the one interface between deciding and computing.

Two implementations: PyTorch, for CUDA and as the fallback everywhere, and the native operator on CPUs that have what
it wants. A slot holds the cached state of one row of decoding: one sequence, or one beam of it.
"""

from collections.abc import Callable
from collections.abc import Sequence as Collection
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

Progress = Callable[[str], None]  # is told in lines what takes long


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Tokens that go into the decoder in one step, row by row; a slot's rows stand together, positions ascending.

    Most slots have one row a step. A decoder prefix, or a draft that is to be verified, has several.
    """

    tokens: list[int]
    positions: list[int]  # within the decoder's sequence, its start token being 0
    slots: list[int]
    wanted: list[int]  # rows whose logits are asked for, ascending


@dataclass(frozen=True, kw_only=True)
class GreedyStep:
    """What one step of `AheadBackend.decode_ahead` chose, by the rows of its feed."""

    tokens: list[int]
    max_logits: list[float]  # the highest logit; NaN or infinite where the row is not finite


class Backend(Protocol):
    """Owns everything that is a tensor. Slots are numbered from 0; the running ones fill 0 to n-1 at every step."""

    @property
    def has_own_threads(self) -> bool:
        """Whether it computes in threads of its own, beside which PyTorch's would only stand in the way."""

    @property
    def path(self) -> str | None:
        """How the last `decode` ran, "graph" or "eager"; None where the backend replays nothing."""

    def encode(self, sources: Collection[list[int]], slots: Collection[Collection[int]]) -> int:
        """Encode sources, each into all of its slots (one, or one a beam), whose decoded state begins anew.

        Returns the number of positions that were computed for nothing.
        """

    def decode(self, feed: Feed) -> Tensor:
        """Logits [wanted, vocabulary] on the backend's device, in at least float32; valid until the next call."""

    def reorder(self, targets: Collection[int], origins: Collection[int], length: int) -> None:
        """Give each slot of `targets` the decoded state, `length` positions, that its origin has now.

        Origins are among the targets, which are the beams of one sequence: their sources are the same.
        """

    def move(self, origin: int, target: int, *, source_length: int, length: int) -> None:
        """A sequence changes its slot: copy the state of its source and its decoded state over the target's."""

    def clear(self, slot: int) -> None:
        """Forget a slot's state, where it may not be finite."""

    def memory_bytes(self) -> dict[str, int]:
        """Fixed for the life of the backend: `weights` and `cache`."""


@runtime_checkable
class SlicedBackend(Backend, Protocol):
    """A backend that can encode a long source a little at a time, between steps of others.

    The slots of such a source have no rows in a feed until it is encoded. They may move meanwhile, and other sources
    may be encoded whole.
    """

    def begin_source(self, source: list[int], slots: Collection[int]) -> None:
        """Take a source for its slots; no other one is under way."""

    def go_on(self, seconds: float | None) -> bool:
        """Encode for about so long, or to the end; returns whether the source is encoded.

        Where the time is too short for anything worth while, nothing is done.
        """

    def drop_source(self) -> None:
        """Give up the source that is under way."""


@runtime_checkable
class AheadBackend(Backend, Protocol):
    """A backend that can choose greedily by itself, and so make steps that nobody looks at."""

    def decode_ahead(self, feed: Feed, *, steps: int, ends: Collection[int], seconds: float) -> list[GreedyStep]:
        """Advance slots of one row each by their likeliest tokens, step after step, `steps` at most and at least one.

        Ends sooner, after a step in which a row came to a token of `ends` or to scores that are not finite, and where
        another step would probably end later than `seconds` from now.
        """
