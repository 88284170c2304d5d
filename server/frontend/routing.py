"""Which loaded variant a request means."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from model_store.errors import ModelStoreError
from model_store.version.ref import Ref
from server.errors import InvalidRequestError, NotFoundError


class Named(Protocol):
    """What routing needs to know of a loaded variant."""

    @property
    def model(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def version(self) -> int | None: ...
    @property
    def ref(self) -> str: ...


V = TypeVar("V", bound=Named)


def route(ref_text: str | None, loaded: Sequence[V]) -> V:
    """The variant that a request's `model` means; no model means the first one.

    A bare NAME is the family: its variant `dense`, else the first one loaded of it. A version number also finds a
    variant that was loaded by alias.

    Raises:
        InvalidRequestError: the text is no REF.
        NotFoundError: nothing of that name is loaded.
    """
    if ref_text is None:
        return loaded[0]
    try:
        ref = Ref.parse(ref_text)
    except ModelStoreError as error:
        raise InvalidRequestError(f"model: {error}") from error
    found = [
        candidate
        for candidate in loaded
        if candidate.model == ref.name
        and (ref.alias is None or candidate.variant == ref.alias)
        and (ref.version is None or candidate.version == ref.version)
    ]
    if not found:
        names = ", ".join(candidate.ref for candidate in loaded)
        raise NotFoundError(f"model {ref_text!r} is not loaded: use one of {names}")
    return dense_or_first(found)


def dense_or_first(variants: Sequence[V]) -> V:
    """The dense variant where there is one, else the first."""
    return next((candidate for candidate in variants if candidate.variant == "dense"), variants[0])


def family_of_first(loaded: Sequence[V]) -> list[V]:
    """All variants of the family that a request without a model goes to."""
    return [candidate for candidate in loaded if candidate.model == loaded[0].model]


def baseline_of(model: str, variants: Sequence[V]) -> V:
    """The one among a family's variants that the others are compared with."""
    return dense_or_first([variant for variant in variants if variant.model == model])
