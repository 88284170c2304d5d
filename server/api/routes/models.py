"""`GET /models`, `/models/{ref}`, `/stats` and `/info`: what is loaded, and how it is doing."""

import dataclasses
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from server.api.http.json_response import AsciiJsonResponse
from server.frontend.cards import NO_RECORDS, VersionRecords
from server.frontend.metrics import OUTCOMES
from server.frontend.requests.parameters import MOST_STOPS
from server.frontend.service import Service
from server.frontend.traffic.routing import route
from server.frontend.variant import Variant
from server.version import project_version

_QUALITY_FIELDS = ("metric", "value", "lower_is_better", "dtype", "engine", "split", "rows")
_LATENCY_FIELDS = (
    *("dtype", "engine", "device", "processor", "threads", "batch", "source_tokens", "new_tokens"),
    *("encode_ms", "step_ms", "total_ms", "at"),
)


def model_routes(service: Service) -> APIRouter:
    """The routes that describe one service's models."""
    router = APIRouter()

    @router.get("/models")
    async def models() -> Response:
        """Every variant in the order in which it was loaded, then those that are about to go."""
        variants = (*service.variants, *service.fleet.leaving)
        return AsciiJsonResponse([model_document(service, variant) for variant in variants])

    @router.get("/models/{ref}")
    async def card(ref: str) -> Response:
        """A variant's card: its row, its lineage without the recipe, its quality, its measured times."""
        variant = route(ref, service.variants)
        version = variant.resolved.found.version
        records = NO_RECORDS if version is None else await service.cards.records(version.ref)
        return AsciiJsonResponse(_card_document(service, variant, records))

    @router.get("/stats")
    async def stats() -> Response:
        """What every variant is doing now, and its answers of the last minute, without comparisons."""
        return AsciiJsonResponse({"models": [_stats_document(service, variant) for variant in service.variants]})

    @router.get("/info")
    async def info() -> Response:
        """text-generation-inference's fields for the first variant, and the names of all variants."""
        return AsciiJsonResponse(_info_document(service))

    return router


def model_document(service: Service, variant: Variant) -> dict[str, Any]:
    """A row of `/models`."""
    ready = variant.supervisor.ready
    spec = variant.resolved.found.model.spec
    return {
        "ref": variant.ref,
        "model": variant.model,
        "variant": variant.variant,
        "digest": variant.resolved.digest,
        "state": service.state_of(variant).value,
        "dtype": variant.resolved.request.engine.dtype,
        "dtype_why": variant.resolved.dtype_why,
        "engine": variant.resolved.engine,
        "memory_bytes": None if ready is None else sum(ready.memory_bytes.values()),
        "spec": {
            **{key: value for key, value in dataclasses.asdict(spec).items() if key != "hidden"},
            "width": spec.width,
            "encoder_layers": len(spec.encoder),
            "decoder_layers": len(spec.decoder),
            "encoder_sparsity": round(spec.encoder_sparsity, 4),
            "parameters": variant.resolved.parameters,
            "kind": "pruned" if spec.compact else "dense",
        },
    }


def _card_document(service: Service, variant: Variant, records: VersionRecords) -> dict[str, Any]:
    version = variant.resolved.found.version
    document = {**model_document(service, variant), "version": variant.version, "aliases": [], "created_at": None}
    document |= {"bytes": None, "weights_dtype": None, "licence": None, "lineage": None}
    document["quality"] = {"metrics": {}, "measured_on": None, "records": []}
    document["latency"] = []
    if version is None:  # a folder outside the store: nobody has published it, so nothing more is known
        return document
    manifest, parent = version.manifest, variant.resolved.parent
    lineage = manifest.lineage.document()
    del lineage[
        "recipe"
    ]  # it may be long, and name folders of the machine that trained; `nash models lineage` shows it
    made_from = [each.ref for each in service.variants if parent is not None and each.resolved.digest == parent]
    measured = manifest.measured_on
    return document | {
        "aliases": list(version.aliases),
        "created_at": version.created_at,
        "bytes": manifest.spec.bytes,
        "weights_dtype": manifest.spec.dtype,
        "licence": manifest.licence,
        "lineage": {**lineage, "parent_ref": made_from[0] if made_from else None},  # null where it is not loaded
        "quality": {
            "metrics": manifest.metrics,
            "measured_on": None if measured is None else measured.document(),
            "records": [{name: getattr(record, name) for name in _QUALITY_FIELDS} for record in records.quality],
        },
        "latency": [{name: getattr(record, name) for name in _LATENCY_FIELDS} for record in records.latency],
    }


def _stats_document(service: Service, variant: Variant) -> dict[str, Any]:
    ready, state, recent = variant.supervisor.ready, variant.metrics.state, variant.metrics.recent.figures()
    return {
        "ref": variant.ref,
        "model": variant.model,
        "variant": variant.variant,
        "state": service.state_of(variant).value,
        "slots": None if ready is None else ready.limits.slots,
        "running": 0 if state is None else state.running,
        "waiting": 0 if state is None else state.waiting,
        "cache_used_ratio": 0.0 if state is None else round(max(state.cache_used_ratio.values(), default=0.0), 4),
        "outcomes": {outcome: variant.metrics.outcomes[outcome] for outcome in OUTCOMES},
        "last_minute": {
            "answers": recent.answers,
            "per_s": round(recent.per_s, 3),
            "p50_ms": None if recent.p50_s is None else round(1e3 * recent.p50_s, 3),
            "p95_ms": None if recent.p95_s is None else round(1e3 * recent.p95_s, 3),
        },
    }


def _info_document(service: Service) -> dict[str, Any]:
    first, settings = service.variants[0], service.settings
    engine = first.resolved.request.engine
    return {
        "model_id": first.ref,
        "model_sha": first.resolved.digest,
        "model_dtype": engine.dtype,
        "model_dtype_why": first.resolved.dtype_why,
        "engine": first.resolved.engine,
        "model_device_type": engine.device,
        "model_pipeline_tag": "text2text-generation",
        "max_concurrent_requests": engine.slots + settings.max_queue,
        "max_best_of": engine.slots,
        "max_stop_sequences": MOST_STOPS,
        "max_input_tokens": engine.max_source_tokens,
        "max_total_tokens": engine.max_source_tokens + engine.max_new_tokens,
        "max_client_batch_size": settings.max_batch_items,
        "validation_workers": 1,
        "router": "nash",
        "version": project_version(),
        "models": [variant.ref for variant in service.variants],
    }
