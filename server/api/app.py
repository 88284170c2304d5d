"""The FastAPI application over a service."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.middleware import Middleware

from server.api.http.errors import add_error_handlers
from server.api.http.keys import KeyRing
from server.api.http.middleware import BodyLimit, HeadAsGet, KeyCheck, OpenRequests, RequestId, SameSite
from server.api.http.request_log import RequestLog
from server.api.openapi.document import openapi_document
from server.api.routes.compare import compare_routes
from server.api.routes.completions import completion_routes
from server.api.routes.control import control_routes
from server.api.routes.generate import generate_routes
from server.api.routes.health import health_routes
from server.api.routes.models import model_routes
from server.api.routes.static_page import docs_routes, page_routes
from server.api.routes.tokenize import tokenize_routes
from server.api.routes.translate import translate_routes
from server.frontend.service import Service
from server.settings import Settings
from server.telemetry.tracing import Tracing, tracing_from
from server.version import project_version


def create_app(settings: Settings) -> FastAPI:
    """A server as an ASGI application, for any ASGI host. Its workers start and stop with its lifespan.

    Raises:
        ModelStoreError, SettingsError, StartError: the requested models cannot be served.
    """
    return create_app_over(Service(settings), starts_service=True)


def create_app_over(service: Service, *, starts_service: bool) -> FastAPI:
    """The application over an existing service. It starts the service if `starts_service`; it always stops it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            if starts_service:
                await service.start()
            yield
        finally:
            await asyncio.shield(service.stop())
            if tracing is not None:
                await tracing.stop()

    tracing = tracing_from(os.environ)
    path = service.settings.api_keys
    keys = KeyRing(path, on_limited=service.metrics.limited) if path else None
    app = FastAPI(
        title="nash",
        version=project_version(),
        lifespan=lifespan,
        middleware=_middleware(service, keys, tracing),
        docs_url=None,  # its page loads scripts from another site; ours is in static_page.py
        redoc_url=None,
    )
    add_error_handlers(app)
    app.include_router(generate_routes(service))
    app.include_router(compare_routes(service))
    app.include_router(completion_routes(service))
    app.include_router(tokenize_routes(service))
    app.include_router(translate_routes(service, keys))
    app.include_router(model_routes(service))
    app.include_router(control_routes(service, keys))
    app.include_router(health_routes(service, exemplars=tracing is not None))
    app.include_router(page_routes())
    document = openapi_document(app, has_keys=keys is not None)
    app.openapi = lambda: document  # type: ignore[method-assign]
    app.include_router(docs_routes(document))
    return app


def _middleware(service: Service, keys: KeyRing | None, tracing: Tracing | None) -> list[Middleware]:
    """In the order in which a request passes through them."""
    settings = service.settings
    same_site = settings.is_loopback and not settings.allow_unauthenticated
    chain = [
        Middleware(RequestId),
        Middleware(RequestLog, settings=settings, tracing=tracing),
        Middleware(HeadAsGet),
        Middleware(SameSite, host=settings.host) if same_site else None,
        Middleware(KeyCheck, keys=keys, service=service) if keys else None,
        Middleware(OpenRequests, service=service),
        Middleware(BodyLimit, settings=settings),
    ]
    return [each for each in chain if each is not None]
