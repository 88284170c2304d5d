"""Choose the loaded variant that a request names."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from model_store.errors import ModelStoreError
from model_store.version.ref import Ref
from server.errors import InvalidInputError, NotServedError

_LONGEST_REF = 200  # characters; more are not worth repeating in an error


class Named(Protocol):
    """What routing needs to know about a loaded variant."""

    @property
    def model(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def version(self) -> int | None: ...
    @property
    def digest(self) -> str | None: ...
    @property
    def ref(self) -> str: ...
    @property
    def is_default(self) -> bool: ...


V = TypeVar("V", bound=Named)


def named_model(ref_text: str | None) -> str | None:
    """The model that a text names without saying which variant; None if it says, or is not a REF."""
    try:
        ref = Ref.parse(ref_text or "")
    except ModelStoreError:
        return None
    return ref.name if ref.is_bare else None


def route(ref_text: str | None, loaded: Sequence[V]) -> V:
    """The variant that a request's `model` names; without a model, the first one.

    A bare NAME means the family: the variant that its alias `default` names if loaded, else `dense`, else the first
    one. A version number or a digest also finds a variant that was loaded by alias, unless one was loaded by it.

    Raises:
        InvalidInputError: the text is not a REF.
        NotServedError: nothing of that name is loaded.
    """
    if ref_text is None:
        return loaded[0]
    if len(ref_text) > _LONGEST_REF:
        raise InvalidInputError(
            f"model has {len(ref_text)} characters: use NAME, NAME@ALIAS, NAME:VERSION or NAME@sha256:DIGEST"
        )
    try:
        ref = Ref.parse(ref_text)
    except ModelStoreError as error:
        raise InvalidInputError(f"model: {error}") from error
    found = [
        candidate
        for candidate in loaded
        if candidate.model == ref.name
        and (ref.alias is None or candidate.variant == ref.alias)
        and (ref.version is None or candidate.version == ref.version)
        and (ref.digest is None or candidate.digest == ref.digest)
    ]
    if not found:
        names = ", ".join(candidate.ref for candidate in loaded)
        raise NotServedError(f"model {ref_text!r} is not loaded: use one of {names}")
    exact = next((candidate for candidate in found if candidate.ref == str(ref)), None)
    return exact or next((candidate for candidate in found if candidate.is_default), dense_or_first(found))


def dense_or_first(variants: Sequence[V]) -> V:
    """The dense variant if there is one, otherwise the first."""
    return next((candidate for candidate in variants if candidate.variant == "dense"), variants[0])


def family_of_first(loaded: Sequence[V]) -> list[V]:
    """All variants of the first loaded family, to which a request without a model goes."""
    return [candidate for candidate in loaded if candidate.model == loaded[0].model]


def baseline_of(model: str, variants: Sequence[V]) -> V:
    """The variant of a family that its others are compared with."""
    return dense_or_first([variant for variant in variants if variant.model == model])
