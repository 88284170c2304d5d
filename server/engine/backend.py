"""What an engine needs from a backend: the one interface between deciding and computing.

There are two implementations: PyTorch, for CUDA and as the fallback everywhere, and the native operator on CPUs that
have what it needs. A slot holds the cached state of one decoding row: one sequence, or one of its beams.
"""

from collections.abc import Callable
from collections.abc import Sequence as Collection
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

Progress = Callable[[str], None]  # receives a line about each slow operation


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Tokens that enter the decoder in one step, row by row; a slot's rows are adjacent, positions ascending.

    Most slots have one row per step. A decoder prefix, or a draft to be verified, has several.
    """

    tokens: list[int]
    positions: list[int]  # within the decoder's sequence; the start token is 0
    slots: list[int]
    wanted: list[int]  # rows whose logits are requested, ascending


@dataclass(frozen=True, kw_only=True)
class GreedyStep:
    """What one step of `decode_ahead` chose, by row of its feed."""

    tokens: list[int]
    max_logits: list[float]  # the highest logit; NaN or infinite if the row is not finite


class Backend(Protocol):
    """Owns all tensors. Slots are numbered from 0; those that run fill 0 to n-1, and a step may be for some of them."""

    @property
    def has_own_threads(self) -> bool:
        """Whether it computes in its own threads; PyTorch's would only get in their way."""

    @property
    def path(self) -> str | None:
        """How the last `decode` ran, "graph" or "eager"; None if the backend replays nothing."""

    @property
    def rows_cost(self) -> bool:
        """Whether a step takes longer the more rows it has. Only then may a step leave out slots that run."""

    @property
    def runs_ahead(self) -> bool:
        """Whether `decode_ahead` ever makes steps; if not, the engine need not find out whether it may."""

    def encode(self, sources: Collection[list[int]], slots: Collection[Collection[int]]) -> int:
        """Encode sources, each into all of its slots (one, or one per beam), and reset their decoded state.

        Returns the number of positions computed for nothing.
        """

    def decode(self, feed: Feed) -> Tensor:
        """Logits [wanted, vocabulary] on the backend's device, in at least float32; valid until the next call."""

    def decode_ahead(self, feed: Feed, *, steps: int, ends: Collection[int], seconds: float) -> list[GreedyStep]:
        """Advance slots of one row each by their likeliest tokens, step after step, `steps` at most.

        Stops early after a step in which a row reached a token of `ends` or scores that are not finite, or when
        another step would probably end later than `seconds` from now. Makes no step if not even two would fit into
        the time: then `decode` is as good.
        """

    def reorder(self, targets: Collection[int], origins: Collection[int], length: int) -> None:
        """Give each slot of `targets` the current decoded state, `length` positions, of its origin.

        Origins are among the targets. The targets are the beams of one sequence, so they share a source.
        """

    def move(self, origin: int, target: int, *, source_length: int, length: int) -> None:
        """A sequence changes slots: copy its source state and its decoded state over the target's."""

    def clear(self, slot: int) -> None:
        """Forget a slot's state, which may not be finite."""

    def memory_bytes(self) -> dict[str, int]:
        """`weights` and `cache`, fixed for the life of the backend."""


EncodedSource = list[Tensor]  # what the decoder reads of a source: a copy, on the backend's device


@runtime_checkable
class KeepingBackend(Backend, Protocol):
    """A backend whose encoded sources can be kept and read again."""

    def copy_of_source(self, slot: int) -> EncodedSource:
        """A copy of the source that a slot reads."""

    def restore_source(self, encoded: EncodedSource, length: int, slots: Collection[int]) -> None:
        """Let all of a source's slots read an encoded source of so many tokens, as `encode` would, to the bit."""


@runtime_checkable
class SlicedBackend(Backend, Protocol):
    """A backend that can encode a long source a little at a time, between other sequences' steps.

    The slots of such a source have no rows in a feed until it is encoded. Meanwhile they may move, and other sources
    may be encoded whole.
    """

    def begin_source(self, source: list[int], slots: Collection[int]) -> None:
        """Begin a source for its slots; no other source is in progress."""

    def go_on(self, seconds: float | None) -> bool:
        """Encode for about `seconds`, or to the end if None; returns whether the source is encoded.

        If the time is too short for anything worthwhile, do nothing.
        """

    def drop_source(self) -> None:
        """Abandon the source in progress."""
