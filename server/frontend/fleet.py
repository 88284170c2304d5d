"""The loaded variants, and how they come and go while requests are served.

A variant takes requests from when its worker is ready until it is retired. Retiring lets what it has accepted finish.
A swap loads the new version beside the old one, puts it in its place in one step, and then retires the old one, so
that no request fails.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from model_store.errors import InvalidRequestError, ModelStoreError, NotFoundError
from model_store.store import Store
from server.errors import (
    ApiError,
    ConflictError,
    InvalidInputError,
    NoRoomError,
    NotServedError,
    SettingsError,
    StartError,
)
from server.frontend.metrics import Metrics
from server.frontend.resolution import ResolvedVariant, resolve_model, resolve_models
from server.frontend.room import check_budget, check_room, on_cpu
from server.frontend.traffic.routing import baseline_of
from server.frontend.variant import Variant
from server.frontend.workers.supervisor import ModelState
from server.settings import ModelRequest, Settings, with_threads

_logger = logging.getLogger(__name__)


class Fleet:
    """All variants of one server, in the order in which they were asked for."""

    def __init__(self, settings: Settings, metrics: Metrics, *, on_request: Callable[[], None]) -> None:
        """Find and verify the models of the settings; no worker is started yet. `on_request` hears of each request.

        Raises:
            ModelStoreError, SettingsError: a model is not available, or two have the same name.
            StartError: a model has no readable tokenizer.
        """
        self._settings = settings
        self._metrics = metrics
        self._on_request = on_request
        self._store = Store(settings.store)
        models = resolve_models(tuple(map(self._configured, settings.models)), self._store)
        self._loaded = {
            resolved.ref: self._variant(resolved, baseline=resolved is baseline_of(resolved.model, models))
            for resolved in models
        }
        for variant in self.variants:
            variant.describe()
        check_budget([variant.resolved for variant in self.variants], settings.memory_bytes)
        self._leaving: list[Variant] = []  # retired, and not yet at an end
        self._changes = asyncio.Lock()  # of two changes at once, the second must see what the first has done
        self._tasks: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._idling: asyncio.Task[None] | None = None

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Those that requests may name, loading ones included."""
        return tuple(self._loaded.values())

    @property
    def leaving(self) -> tuple[Variant, ...]:
        """Those that take no more requests and finish what they have."""
        return tuple(self._leaving)

    @property
    def busy(self) -> bool:
        """Whether anything runs, loads or is about to: what is measured now would be slower than alone."""
        everything = (*self.variants, *self.leaving)
        return self._changes.locked() or any(
            each.supervisor.pending or each.supervisor.state is ModelState.LOADING for each in everything
        )

    async def start(self) -> None:
        """Start all workers and wait until every model is loaded.

        Raises:
            StartError: a model cannot be loaded.
        """
        await asyncio.gather(*(variant.supervisor.start() for variant in self.variants))
        self._watch()

    async def stop(self) -> None:
        """End every worker; generations still running fail with an error that says why."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(variant.stop() for variant in (*self.variants, *self.leaving)))

    def limits_changed(self) -> None:
        """The settings were read again."""
        for variant in (*self.variants, *self.leaving):
            variant.limits_changed()
        self._watch()

    async def load(self, asked: str | ResolvedVariant, *, wait: bool) -> Variant:
        """Load one more model, `REF[,key=value...]`; with `wait`, return only when it is ready.

        Raises:
            InvalidInputError: the text is malformed, or this machine lacks what it asks for.
            NotServedError: the store has no such model.
            ConflictError: it is loaded already, or cannot be loaded.
            NoRoomError: its memory is not there.
        """
        async with self._changes:
            resolved = asked if isinstance(asked, ResolvedVariant) else await self.resolved(self._asked(asked))
            if resolved.ref in self._loaded:
                raise ConflictError(f"{resolved.ref} is loaded already: unload it first, or swap it")
            self._check_room(resolved)
            others = [variant.resolved for variant in self.variants]
            baseline = resolved is baseline_of(resolved.model, [*others, resolved])
            variant = await asyncio.to_thread(self._one_more, resolved, baseline=baseline)
            variant.describe()
            self._loaded[resolved.ref] = variant
        starting = self._spawn(self._begin(variant))
        if wait:
            await asyncio.shield(starting)
        return variant

    async def unload(self, ref: str) -> Variant:
        """Take no more requests for a variant, and end it in the background once it has finished what it has.

        Raises:
            NotServedError: no such variant is loaded.
            ConflictError: no other one is ready.
        """
        async with self._changes:
            variant = self._find(ref)
            if not any(each.supervisor.available for each in self.variants if each is not variant):
                raise ConflictError(f"{ref} is the only model that is ready: load another one first")
            del self._loaded[ref]
            self._retire(variant, gone=True)
        return variant

    async def swap(self, ref: str, new: ResolvedVariant | None = None) -> tuple[str | None, str | None]:
        """Take up the version that a variant's alias names now, or `new`; return the digests before and after.

        Raises:
            NotServedError: no such variant is loaded, or the store has it no longer.
            ConflictError: the new version cannot be loaded; the old one stays.
            NoRoomError: there is no memory for both at once.
        """
        async with self._changes:
            old = self._settled(ref)
            resolved = await self.resolved(old.resolved.asked) if new is None else new
            if new is None and resolved.digest == old.resolved.digest and resolved.digest is not None:
                return old.resolved.digest, old.resolved.digest
            await self._replace(old, resolved)
            _logger.info("%s: %s is served now, %s before", ref, resolved.digest, old.resolved.digest)
            return old.resolved.digest, resolved.digest

    async def reload(self, ref: str, keys: str | None) -> Variant:
        """Load what a variant's name means now in its place, even if it is the same version.

        `keys` (key=value,...) say how, in place of those it was loaded with.

        Raises:
            InvalidInputError: the keys are malformed, or this machine lacks what they ask for.
            NotServedError, ConflictError, NoRoomError: as `swap`.
        """
        async with self._changes:
            old = self._settled(ref)
            asked = old.resolved.asked
            return await self._replace(
                old, await self.resolved(asked if keys is None else self._asked(f"{asked.ref},{keys}"))
            )

    async def _replace(self, old: Variant, resolved: ResolvedVariant) -> Variant:
        """Load a version beside the one that is served, and put it in its place."""
        self._check_room(resolved)
        new = await asyncio.to_thread(self._one_more, resolved, baseline=old.baseline)
        try:
            await new.supervisor.start()
        except BaseException as error:
            await new.stop()
            if isinstance(error, StartError):
                raise ConflictError(f"{error}; {old.ref} stays as it was") from error
            raise
        new.describe()
        self._loaded[old.ref] = new
        self._retire(old, gone=False)
        return new

    def behind(self, variant: Variant) -> str | None:
        """The digest that a variant's alias names now, if that is not what is served; None if it cannot be told.

        Raises:
            ModelStoreError: the store cannot be read.
        """
        if variant.resolved.found.version is None:
            return None
        digest = self._store.resolve(variant.resolved.found.ref).digest
        return None if digest == variant.resolved.digest else digest

    def _watch(self) -> None:
        """Begin what the settings ask for and does not go on already; what they no longer ask for ends by itself."""
        if self._settings.follow_s and (self._following is None or self._following.done()):
            self._following = self._spawn(self._follow())
        if self._settings.idle_s and (self._idling is None or self._idling.done()):
            self._idling = self._spawn(self._unload_idle())

    async def _follow(self) -> None:
        """Look at the aliases from time to time, and swap in what they name; what failed once is not tried again."""
        failed: dict[str, str] = {}
        while self._settings.follow_s:
            await asyncio.sleep(self._settings.follow_s)
            for variant in self.variants:
                wanted = None
                try:
                    wanted = await asyncio.to_thread(self.behind, variant)
                    if wanted is not None and failed.get(variant.ref) != wanted:
                        await self.swap(variant.ref)
                except (ApiError, ModelStoreError, OSError) as error:
                    _logger.error("%s stays as it is: %s", variant.ref, error)
                    if isinstance(error, ConflictError) and wanted is not None:
                        failed[variant.ref] = wanted

    async def _unload_idle(self) -> None:
        """End the workers of models that nobody asks for."""
        while most_s := self._settings.idle_s:
            await asyncio.sleep(min(1.0, most_s / 4))
            for variant in self.variants:
                if variant.idle_s() >= most_s:
                    _logger.info("%s was not asked for in %g s and is unloaded until it is", variant.ref, most_s)
                    await variant.supervisor.sleep()

    async def _rouse(self, variant: Variant) -> None:
        """Begin to load a sleeping variant again, if there is room for it beside the others."""
        async with self._changes:
            try:
                self._check_room(variant.resolved)
            except NoRoomError as error:  # another one may fall asleep
                longest_s = max((each.idle_s() for each in self.variants if each is not variant), default=0.0)
                raise NoRoomError(str(error), retry_after_s=max(1.0, self._settings.idle_s - longest_s)) from error
            variant.supervisor.rouse()

    async def _begin(self, variant: Variant) -> None:
        try:
            await variant.supervisor.start()
        except StartError as error:
            _logger.error("%s", error)
            if self._loaded.get(variant.ref) is variant:
                del self._loaded[variant.ref]
            await variant.stop()
            self._forget(variant)
            raise ConflictError(str(error)) from error

    def _retire(self, variant: Variant, *, gone: bool) -> None:
        variant.supervisor.state = ModelState.DRAINING
        self._leaving.append(variant)
        self._spawn(self._end(variant, gone=gone))

    async def _end(self, variant: Variant, *, gone: bool) -> None:
        await variant.finish(self._settings.total_s)
        self._leaving.remove(variant)
        if gone:
            self._forget(variant)

    def _forget(self, variant: Variant) -> None:
        """Drop its metrics, unless one of the same names has been loaded since."""
        if all((each.model, each.variant) != (variant.model, variant.variant) for each in self.variants):
            variant.metrics.remove()

    def _find(self, ref: str) -> Variant:
        if ref not in self._loaded:
            raise NotServedError(f"ref {ref!r:.200} is not loaded: use one of {', '.join(self._loaded)}")
        return self._loaded[ref]

    def _settled(self, ref: str) -> Variant:
        variant = self._find(ref)
        if variant.supervisor.state is ModelState.LOADING:
            raise ConflictError(f"{ref} is loading: change it once it is ready")
        return variant

    def _asked(self, text: str) -> ModelRequest:
        try:
            [request] = with_threads([ModelRequest.parse(text)], None, pools=len(self._loaded) + 1)
        except SettingsError as error:
            raise InvalidInputError(str(error)) from error
        return request

    def _configured(self, request: ModelRequest) -> ModelRequest:
        """With what is set for all models of a server."""
        return replace(request, engine=replace(request.engine, source_cache_bytes=self._settings.source_cache_bytes))

    async def resolved(self, asked: ModelRequest) -> ResolvedVariant:
        """Find and verify a model in another thread: that reads all its bytes.

        Raises:
            InvalidInputError: this machine lacks what it asks for.
            NotServedError: the store has no such model.
            ConflictError: it cannot be read.
        """
        try:
            return await asyncio.to_thread(resolve_model, self._configured(asked), self._store)
        except (SettingsError, InvalidRequestError) as error:
            refusal = NotServedError if isinstance(error, NotFoundError) else InvalidInputError
            raise refusal(f"model: {error}") from error
        except ModelStoreError as error:
            raise ConflictError(f"model: {error}") from error

    def _one_more(self, resolved: ResolvedVariant, *, baseline: bool) -> Variant:
        try:
            return self._variant(resolved, baseline=baseline)
        except StartError as error:
            raise ConflictError(f"{resolved.ref} cannot be loaded: {error}") from error

    def _variant(self, resolved: ResolvedVariant, *, baseline: bool) -> Variant:
        variant = Variant(resolved, self._settings, self._metrics, baseline=baseline, rouse=self._rouse)
        variant.supervisor.on_request = self._on_request
        return variant

    def _check_room(self, resolved: ResolvedVariant) -> None:
        taken = [variant.memory_bytes for variant in (*self.variants, *self.leaving) if on_cpu(variant.resolved)]
        check_room(resolved, taken, self._settings.memory_bytes)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ApiError):  # those are told to whoever asked
            _logger.error("a change of what is served failed", exc_info=error)
