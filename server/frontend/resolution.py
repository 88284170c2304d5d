"""Resolve each `--model` to a verified model and the names of its variant."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_store.find import FoundModel, find_model
from model_store.model.model import TOKENIZER, WEIGHTS
from model_store.store import Store
from model_store.version.quality import QualityRecord
from model_store.version.ref import DEFAULT_ALIAS, Ref
from server.engine.capabilities import AUTO, check_calibrated, engine_name, why_not
from server.engine.dtype_choice import with_dtype
from server.engine.errors import LoadError
from server.errors import SettingsError
from server.settings import ModelRequest

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ResolvedVariant:
    """One model to load. `model` and `variant` are its labels everywhere; callers name it by `ref`."""

    ref: str
    model: str
    variant: str
    found: FoundModel
    asked: ModelRequest  # as it was asked for
    request: ModelRequest  # as it will be loaded: dtype is never "auto", lengths are within the model's positions
    dtype_why: str  # why this dtype
    engine: str  # what will run it: `native-SET` or `torch`

    @property
    def version(self) -> int | None:
        """Its version number in the store; None for a model from outside the store."""
        return None if self.found.version is None else self.found.version.version

    @property
    def is_default(self) -> bool:
        """Whether the store's alias `default` named this version when it was loaded."""
        return self.found.version is not None and DEFAULT_ALIAS in self.found.version.aliases

    @property
    def digest(self) -> str | None:
        """The digest of its manifest; None for a model from outside the store."""
        return None if self.found.version is None else self.found.version.digest

    @property
    def parent(self) -> str | None:
        """The digest of the version it was made from, if known."""
        return None if self.found.version is None else self.found.version.manifest.lineage.parent

    @property
    def parameters(self) -> int | None:
        """The number of parameters in its manifest; None for a model from outside the store."""
        return None if self.found.version is None else self.found.version.manifest.spec.parameters


def resolve_models(requests: tuple[ModelRequest, ...], store: Store) -> tuple[ResolvedVariant, ...]:
    """Find and verify every requested model, in the given order.

    Raises:
        ModelStoreError: a REF is not in the store, files are damaged, or an architecture is not supported.
        SettingsError: two models would have the same name, or this machine lacks what one of them needs.
    """
    resolved: dict[str, ResolvedVariant] = {}
    for request in requests:
        variant = resolve_model(request, store)
        if variant.ref in resolved:
            other = resolved[variant.ref].request.ref
            raise SettingsError(f"{request.ref} and {other} are both {variant.ref}: give one")
        resolved[variant.ref] = variant
    return tuple(resolved.values())


def resolve_model(request: ModelRequest, store: Store) -> ResolvedVariant:
    """Find and verify one model, and say in the log how it will run.

    Raises:
        ModelStoreError, SettingsError: as above.
    """
    asked, found = request, find_model(request.ref, store)
    ref, name, variant = _labels(found)
    records: Sequence[QualityRecord] = ()
    # A named dtype needs no records, so a damaged one does not matter then.
    if found.version is not None and request.engine.dtype == AUTO:
        records = store.quality(found.version.ref)
    request, why, engine = _settled(request, found, records)
    resolved = ResolvedVariant(
        ref=ref,
        model=name,
        variant=variant,
        found=found,
        asked=asked,
        request=request,
        dtype_why=why,
        engine=engine,
    )
    _logger.info("%s runs in %s on %s (%s)", ref, request.engine.dtype, engine, why)
    return resolved


def _labels(found: FoundModel) -> tuple[str, str, str]:
    """The ref, model and variant by which callers and metrics know a model."""
    if found.version is None:
        model = found.model
        model.require(WEIGHTS, TOKENIZER)  # fail now: the worker would miss them only seconds later
        name = re.sub(r"[^a-z0-9._-]+", "-", model.folder.resolve().name.lower()).lstrip("._-")[:64] or "model"
        variant = "pruned" if model.spec.compact else "dense"
        return f"{name}@{variant}", name, variant
    asked = Ref.parse(found.ref)
    if asked.alias is None:
        return found.version.ref, asked.name, f"v{found.version.version}"
    return f"{asked.name}@{asked.alias}", asked.name, asked.alias


def _settled(
    request: ModelRequest, found: FoundModel, records: Sequence[QualityRecord]
) -> tuple[ModelRequest, str, str]:
    """The request as it will be loaded, why it gets this dtype, and what will run it.

    Sources and targets never exceed the model's positions, whatever was requested.

    Raises:
        SettingsError: this machine lacks what the request needs.
    """
    try:
        config, choice = with_dtype(request.engine.within(found.model.spec.max_positions), records)
        refusal = why_not(config)
        if refusal is None:
            if config.dtype == "int4":
                check_calibrated(found.model)
            return replace(request, engine=config), choice.why, engine_name(config)
    except LoadError as error:
        refusal = str(error)
    raise SettingsError(f"model {request.ref!r}: {refusal}")
