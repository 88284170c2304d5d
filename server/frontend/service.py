"""Everything that one server runs: its variants, its metrics, its shutdown."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from server.errors import UnavailableError
from server.frontend.bounded_lock import BoundedLock
from server.frontend.cards import Cards
from server.frontend.fleet import Fleet
from server.frontend.metrics import Metrics
from server.frontend.traffic.traffic import Traffic, check_traffic
from server.frontend.variant import Variant
from server.frontend.workers.supervisor import ModelState
from server.settings import Settings


class Service:
    """A server without its API, built from settings alone."""

    def __init__(self, settings: Settings) -> None:
        """Find and verify the models; no worker is started yet.

        Raises:
            ModelStoreError, SettingsError: a model is not available, or two have the same name.
            StartError: a model has no readable tokenizer.
        """
        self.settings = settings
        self.metrics = Metrics(CollectorRegistry())
        self.fleet = Fleet(settings, self.metrics, on_request=self._on_request)
        self.cards = Cards(settings.store)
        self.traffic = Traffic(self.metrics, lambda: self.fleet.variants, lambda: self.fleet.busy)
        # Two comparisons at once would slow each other down.
        self.comparisons = BoundedLock(max_waiting=settings.max_queue, wait_s=settings.queue_s)
        for model, setting in settings.traffic.items():
            check_traffic(model, setting, [each.variant for each in self.variants if each.model == model])
            self.traffic.divide(model, setting)
        self.draining = False
        self._started = False
        self._open_requests = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def start(self) -> None:
        """Start all workers and wait until every model is loaded.

        Raises:
            StartError: a model cannot be loaded.
        """
        await self.fleet.start()
        self.traffic.shadow.start()
        self._started = True

    def _on_request(self) -> None:
        self.traffic.shadow.interrupt()

    def limits_changed(self) -> None:
        """The settings were read again: pass on what was copied from them."""
        self.comparisons.limit(max_waiting=self.settings.max_queue, wait_s=self.settings.queue_s)
        self.fleet.limits_changed()

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants that requests may name."""
        return self.fleet.variants

    @property
    def ready(self) -> bool:
        """Whether requests can be taken: once every configured variant was loaded, as long as one of them is."""
        loaded = [variant.supervisor.available for variant in self.variants]
        return not self.draining and (any(loaded) if self._started else all(loaded))

    def state_of(self, variant: Variant) -> ModelState:
        """The state of a variant, as `/models` reports it."""
        return ModelState.DRAINING if self.draining else variant.supervisor.state

    @contextmanager
    def open_request(self) -> Iterator[None]:
        """Hold a request open, from before its body is read until its response is sent.

        Raises:
            UnavailableError: the server is shutting down.
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
        """Accept no more requests, and wait for open ones as long as the settings allow."""
        self.draining = True
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await self._quiet.wait()
        except TimeoutError:
            pass  # `stop` ends the rest

    async def stop(self) -> None:
        """End every worker; generations still running fail with an error that says why."""
        self.draining = True
        await self.traffic.shadow.stop()
        await self.fleet.stop()
