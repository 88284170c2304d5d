"""`GET /models` and `GET /info`: what is loaded."""

import dataclasses
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from server.api.http.json_response import AsciiJsonResponse
from server.frontend.requests.parameters import MOST_STOPS
from server.frontend.service import Service
from server.frontend.variant import Variant
from server.version import project_version


def model_routes(service: Service) -> APIRouter:
    """The routes that describe one service's models."""
    router = APIRouter()

    @router.get("/models")
    async def models() -> Response:
        """Every variant in the order in which it was loaded, then those that are about to go."""
        variants = (*service.variants, *service.fleet.leaving)
        return AsciiJsonResponse([model_document(service, variant) for variant in variants])

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
