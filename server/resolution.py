"""From what `--model` asks for to a verified directory and the names that the variant goes by."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_store.errors import InvalidRequestError
from model_store.ref import Ref, looks_like_path
from model_store.source import TOKENIZER, WEIGHTS
from model_store.spec import ModelSpec
from model_store.store import Store
from server.errors import SettingsError
from server.settings import ModelRequest


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """One model to load. `model` and `variant` are its labels everywhere, `ref` is what callers name it by."""

    ref: str
    model: str
    variant: str
    version: int | None  # None for a model that is not in the store
    digest: str | None
    parent: str | None  # digest of the version that it was made from
    parameters: int | None  # None for a model that is not in the store
    directory: Path
    spec: ModelSpec
    request: ModelRequest


def resolve_models(requests: tuple[ModelRequest, ...], store: Store) -> tuple[ResolvedModel, ...]:
    """Find and verify every model that was asked for, in that order.

    Raises:
        ModelStoreError: a REF that is not in the store, damaged files, an architecture that is not supported.
        SettingsError: two of them would have the same name.
    """
    resolved: dict[str, ResolvedModel] = {}
    for request in requests:
        model = _from_path(request) if looks_like_path(request.ref) else _from_store(request, store)
        if model.ref in resolved:
            raise SettingsError(f"{request.ref} and {resolved[model.ref].request.ref} are both {model.ref}: give one")
        resolved[model.ref] = model
    return tuple(resolved.values())


def _from_store(request: ModelRequest, store: Store) -> ResolvedModel:
    ref = Ref.parse(request.ref)
    version = store.resolve(ref)
    # The alias may move at any time: from here on it is the version that counts.
    directory = store.checkout(Ref(name=version.name, version=version.version))
    variant = ref.variant if ref.alias is not None else None
    spec = ModelSpec.from_config(_read_config(directory))
    return ResolvedModel(
        ref=f"{ref.name}@{variant}" if variant else version.ref,
        model=ref.name,
        variant=variant or f"v{version.version}",
        version=version.version,
        digest=version.digest,
        parent=version.manifest.lineage.parent,
        parameters=version.manifest.spec.parameters,
        directory=directory,
        spec=spec,
        request=_within(request, spec),
    )


def _from_path(request: ModelRequest) -> ResolvedModel:
    directory = Path(request.ref).resolve()
    if not directory.is_dir():
        raise InvalidRequestError(
            f"{request.ref} is no folder: give the folder of a model, "
            "or NAME, NAME@ALIAS or NAME:VERSION of one in the store"
        )
    spec = ModelSpec.from_config(_read_config(directory))
    for file in (WEIGHTS, TOKENIZER):  # the worker would miss them too, seconds later
        if not (directory / file).is_file():
            raise InvalidRequestError(f"{directory} has no {file}: give the folder of a Hugging Face model")
    name = re.sub(r"[^a-z0-9._-]+", "-", directory.name.lower()).lstrip("._-")[:64] or "model"
    variant = "pruned" if spec.compact else "dense"
    return ResolvedModel(
        ref=f"{name}@{variant}",
        model=name,
        variant=variant,
        version=None,
        digest=None,
        parent=None,
        parameters=None,
        directory=directory,
        spec=spec,
        request=_within(request, spec),
    )


def _within(request: ModelRequest, spec: ModelSpec) -> ModelRequest:
    """What a model can do at most: one with so many positions takes no longer sources, whatever was asked for."""
    return replace(request, engine=request.engine.within(spec.max_positions))


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}: give the folder of a Hugging Face model") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidRequestError(f"{path} is not a JSON object")
    return config
