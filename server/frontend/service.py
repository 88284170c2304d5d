"""Everything that one server runs: its variants, its metrics, its end."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from model_store.store import Store
from server.errors import UnavailableError
from server.frontend.bounded_lock import BoundedLock
from server.frontend.metrics import Metrics
from server.frontend.resolution import resolve_models
from server.frontend.routing import baseline_of
from server.frontend.supervisor import ModelState
from server.frontend.variant import Variant
from server.settings import Settings


class Service:
    """Built from settings alone; the API is one face of it."""

    def __init__(self, settings: Settings) -> None:
        """Find and verify the models; nothing runs yet.

        Raises:
            ModelStoreError, SettingsError: a model cannot be had, or two have one name.
            StartError: a model has no tokenizer that can be read.
        """
        self.settings = settings
        self.metrics = Metrics(CollectorRegistry())
        models = resolve_models(settings.models, Store(settings.store))
        self.variants = tuple(
            Variant(resolved, settings, self.metrics, baseline=resolved is baseline_of(resolved.model, models))
            for resolved in models
        )
        # Two comparisons at once would slow each other.
        self.comparisons = BoundedLock(max_waiting=settings.max_queue, wait_s=settings.queue_s)
        self.draining = False
        self._open_requests = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def start(self) -> None:
        """Start all workers and wait until every model is loaded.

        Raises:
            StartError: one cannot be loaded.
        """
        await asyncio.gather(*(variant.supervisor.start() for variant in self.variants))

    @property
    def ready(self) -> bool:
        """Whether every variant that was asked for can take requests."""
        return not self.draining and all(variant.supervisor.ready for variant in self.variants)

    def state_of(self, variant: Variant) -> ModelState:
        """What `/models` says of a variant."""
        return ModelState.DRAINING if self.draining else variant.supervisor.state

    @contextmanager
    def open_request(self) -> Iterator[None]:
        """Hold a request open, from before its body is read until its answer is sent.

        Raises:
            UnavailableError: the server is being stopped.
        """
        if self.draining:
            raise UnavailableError("the server is shutting down: send the request again in a moment", retry_after_s=1)
        self._open_requests += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._open_requests -= 1
            if self._open_requests == 0:
                self._quiet.set()

    async def drain(self) -> None:
        """Accept nothing more, and wait for what runs as long as the settings allow."""
        self.draining = True
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await self._quiet.wait()
        except TimeoutError:
            pass  # `stop` ends the rest

    async def stop(self) -> None:
        """End every worker; what still runs ends with an error that says so."""
        self.draining = True
        await asyncio.gather(*(variant.supervisor.stop() for variant in self.variants))
