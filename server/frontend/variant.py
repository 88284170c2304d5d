"""One loaded variant: its names, its tokenizer, its worker, its metrics."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from model_store.storage.files import held
from server.engine.errors import BadParameterError
from server.engine.interface.generation_config import with_seed
from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.validation import check_parameters
from server.errors import ApiError, ClientGoneError, InvalidInputError, StartError, UnavailableError
from server.frontend.answer_cache import AnswerCache
from server.frontend.metrics import Metrics, ModelDescription, VariantMetrics
from server.frontend.requests.request import TextRequest
from server.frontend.resolution import ResolvedVariant
from server.frontend.room import PROCESS_BYTES, needed_bytes
from server.frontend.workers.admission import Work
from server.frontend.workers.generation import Generation, Mode
from server.frontend.workers.supervisor import Supervisor
from server.messages import Finished, Ready
from server.settings import Settings
from server.telemetry.request_record import RecordedRun, current
from server.text.tokenization import EncodedText, TextCodec

_LOOK_S, _QUIET_LOOKS = 0.05, 4
_LONGEST_PAUSE_S = 30.0  # between two attempts to load a model for a request


class Variant:
    """A `ResolvedVariant` that is being served."""

    def __init__(
        self,
        resolved: ResolvedVariant,
        settings: Settings,
        metrics: Metrics,
        *,
        baseline: bool,
        rouse: Callable[["Variant"], Awaitable[None]],
    ) -> None:
        """Read the tokenizer and create the metrics; the worker is not started yet.

        `baseline`: whether the metrics compare the model's other variants with this one. `rouse` begins to load it
        again, or raises an `ApiError` where there is no memory for it.

        Raises:
            StartError: the model has no readable tokenizer.
        """
        self.resolved = resolved
        self.model = resolved.model
        self.variant = resolved.variant
        self.version = resolved.version
        self.digest = resolved.digest
        self.ref = resolved.ref
        self.is_default = resolved.is_default
        self.loaded_at = int(time.time())  # seconds since the epoch
        self.codec = TextCodec.load(resolved.found.model.folder, resolved.found.model.spec.eos_id)
        self.baseline = baseline
        self.metrics = VariantMetrics(metrics, self.model, self.variant)
        self._entering = 0  # requests that are being admitted
        self._used_s = time.monotonic()  # when it was last seen to have something to do
        self._rouse = rouse
        self._waking: asyncio.Task[None] | None = None  # the load that requests wait for
        self._not_before_s = 0.0  # when loading it may be tried again, and how long to wait after the next failure
        self._pause_s = settings.restart_s
        self._settings = settings
        version = resolved.found.version
        self._holding = ExitStack()
        if version is not None:  # a collection must leave the files: a worker that is started again reads them again
            self._holding.enter_context(held(resolved.found.model.folder))
        self.supervisor = Supervisor(
            resolved.ref,
            resolved.found.model.folder,
            resolved.request.engine,
            settings,
            self.metrics,
            files=() if version is None else version.manifest.files,
        )
        self._cache = AnswerCache(settings, self.metrics, self._run)

    async def results(self, generations: Sequence[Generation]) -> list[Finished]:
        """Wait for all. If one fails or the caller is cancelled, the others are cancelled.

        Raises:
            ApiError: one failed.
        """
        try:
            return [await generation.result() for generation in generations]
        finally:
            self.cancel(generations)

    def cancel(self, generations: Sequence[Generation]) -> None:
        """Stop generations that nobody waits for any more; those that have ended are left alone."""
        for generation in generations:
            self.supervisor.cancel(generation)
            self._cache.leave(generation, ClientGoneError("the client closed its connection"))

    def limits_changed(self) -> None:
        """The settings were read again."""
        self.supervisor.limits_changed()
        self._cache.fit()

    def _run(self, generation: Generation) -> None:
        self.supervisor.accept([generation], patient=True)

    def describe(self) -> None:
        """Let the metrics say which version is served under these names."""
        self.metrics.describe(_description(self.resolved, self.baseline))

    @property
    def memory_bytes(self) -> int:
        """What it takes, or is expected to take while it is not loaded yet."""
        if self.supervisor.asleep:
            return 0
        ready = self.supervisor.ready
        return needed_bytes(self.resolved) if ready is None else PROCESS_BYTES + sum(ready.memory_bytes.values())

    @contextmanager
    def entering(self) -> Iterator[None]:
        """Held by a request from when this variant was chosen for it until it is admitted: it must not stop then."""
        self._entering += 1
        try:
            yield
        finally:
            self._entering -= 1
            self._used_s = time.monotonic()

    def idle_s(self) -> float:
        """For how long nobody has asked it for anything; 0 while it loads or sleeps."""
        if self._entering or self.supervisor.pending or self.supervisor.ready is None:
            self._used_s = time.monotonic()
        return time.monotonic() - self._used_s

    async def _awake(self, arrived_s: float) -> None:
        """Have it loaded if it is asleep. Requests that come meanwhile share one load, each until its own deadline.

        Raises:
            NoRoomError: there is no memory for it now.
            UnavailableError: it cannot be loaded, or not in time.
        """
        if self._waking is None:
            self._waking = asyncio.create_task(self._wake())
            self._waking.add_done_callback(self._woken)
        try:
            async with asyncio.timeout(self._settings.total_s - (time.monotonic() - arrived_s)):
                await asyncio.shield(self._waking)
        except TimeoutError:
            reported = self.supervisor.reported
            raise UnavailableError(
                f"{self.ref} was idle and is not loaded within {self._settings.total_s:g} s: try again in a moment",
                retry_after_s=1.0 if reported is None else reported.load_s,
            ) from None

    async def _wake(self) -> None:
        if (left_s := self._not_before_s - time.monotonic()) > 0:
            raise UnavailableError(
                f"{self.ref} could not be loaded a moment ago: try again later", retry_after_s=left_s
            )
        await self._rouse(self)
        try:
            await self.supervisor.loaded()
        except StartError as error:
            pause_s, self._pause_s = self._pause_s, min(_LONGEST_PAUSE_S, 2 * self._pause_s)
            self._not_before_s = time.monotonic() + pause_s
            raise UnavailableError(f"{error}: try again later", retry_after_s=pause_s) from error
        self._pause_s = self._settings.restart_s

    def _woken(self, task: asyncio.Task[None]) -> None:
        self._waking = None
        if not task.cancelled():
            task.exception()  # mark it as retrieved: whoever waited may have gone

    @property
    def _sleeps(self) -> bool:
        """Whether requests wait until it is loaded again."""
        return self.supervisor.asleep or self._waking is not None

    def draws(self, request: TextRequest) -> bool:
        """Whether it would sample, by the request's own words or by the model's."""
        ready = self._known
        return ready is not None and ready.defaults.resolve(request.generation.given()).do_sample

    async def finish(self, limit_s: float) -> None:
        """Let what was accepted end, for at most so long, then stop."""
        try:
            async with asyncio.timeout(limit_s):
                quiet = 0
                while quiet < _QUIET_LOOKS:  # a request that was routed here a moment ago may not have been admitted
                    quiet = 0 if self._entering or self.supervisor.pending else quiet + 1
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            pass  # `stop` ends the rest
        await self.stop()

    async def stop(self) -> None:
        """End the worker; generations still running fail with an error that says why."""
        await self.supervisor.stop()
        self._holding.close()

    async def admit(
        self,
        request: TextRequest,
        mode: Mode,
        *,
        arrived_s: float | None = None,
        logprobs: bool = False,
        streamed: bool = False,
        seed: int | None = None,
        reuse: bool = False,
    ) -> list[Generation]:
        """Tokenize every text and accept all of them, or none; refusals are counted.

        Args:
            arrived_s: time.monotonic() when the request had arrived; None: now.
            logprobs: whether to report tokens with log-probabilities, and the top alternatives if requested.
            streamed: whether the caller reads the tokens as they are made.
            seed: replaces the request's own.
            reuse: whether the answer of an earlier, equal request may be given, or its encoded source be read.

        Raises:
            InvalidInputError: a text or a parameter is outside what the model accepts.
            UnavailableError: the model is not loaded right now.
            OverloadedError: the queue has no room.
        """
        record = current()
        if record is not None and self.ref not in record.refs:
            record.refs.append(self.ref)
        try:
            with self.entering():
                return await self._admitted(
                    request, mode, arrived_s, logprobs=logprobs, streamed=streamed, seed=seed, reuse=reuse
                )
        except ApiError as error:
            if mode != "shadow":
                self.metrics.ended(error.outcome, len(request.texts))
            raise

    async def _admitted(
        self,
        request: TextRequest,
        mode: Mode,
        arrived_s: float | None,
        *,
        logprobs: bool,
        streamed: bool,
        seed: int | None,
        reuse: bool,
    ) -> list[Generation]:
        ready = self._known
        if ready is None:
            raise UnavailableError(f"{self.ref} is not loaded yet: try again in a moment", retry_after_s=1.0)
        given = {"logprobs": logprobs} if seed is None else {"logprobs": logprobs, "seed": seed}
        parameters = await self._parameters(request, given, ready)
        _check_reported(parameters, request, streamed=streamed, most=self._settings.max_reported_tokens)
        arrived_s = time.monotonic() if arrived_s is None else arrived_s
        batch, timeout_s = request.generation.priority == "batch", (request.generation.timeout_ms or math.inf) / 1e3
        if not (reuse and self._cache.on):  # else nothing of it may have to run
            least = Work.of(parameters, source_tokens=0, texts=len(request.texts))
            left_s = timeout_s - (time.monotonic() - arrived_s)
            self.supervisor.check_room(least, batch=batch, left_s=left_s)  # before its texts are tokenized
        generations = [
            Generation(
                source.ids,
                with_seed(parameters),  # a fresh seed for each if none was given
                self.codec,
                mode=mode,
                arrived_s=arrived_s,
                stops=request.generation.stop or (),
                streamed=streamed,
                truncated=source.truncated,
                reuses_source=reuse,
                batch=batch,
                timeout_s=timeout_s,
            )
            for source in await self._sources(request, ready.limits.max_source_tokens)
        ]
        if self._sleeps and not (reuse and self._cache.on and self._all_known(generations, parameters)):
            await self._awake(generations[0].arrived_s)
        self._accept(generations, parameters, reuse=reuse)
        if (record := current()) is not None:
            record.runs += [RecordedRun(self.ref, self.model, self.variant, mode, each) for each in generations]
        return generations

    @property
    def _known(self) -> Ready | None:
        """What it accepts, which is known while it sleeps too; None if it cannot take requests."""
        return self.supervisor.reported if self._sleeps else self.supervisor.ready

    def _all_known(self, generations: Sequence[Generation], parameters: GenerationParameters) -> bool:
        keys = ((each, self._cache.key(each, parameters)) for each in generations)
        return all(key is not None and self._cache.knows(key, each) for each, key in keys)

    def _accept(self, generations: Sequence[Generation], parameters: GenerationParameters, *, reuse: bool) -> None:
        """Run those that are not answered by earlier ones; all, or none."""
        if not (reuse and self._cache.on):
            self.supervisor.accept(generations)
            return
        keys = [(generation, self._cache.key(generation, parameters)) for generation in generations]
        known = [(each, key) for each, key in keys if key is not None and self._cache.knows(key, each)]
        new = [(each, key) for each, key in keys if key is None or not self._cache.knows(key, each)]
        self.supervisor.accept([each for each, _ in new])
        for each, known_key in known:
            self._cache.answer(each, known_key)
        for each, key in new:
            if key is not None:
                self._cache.runs(each, key)

    async def _sources(self, request: TextRequest, most: int) -> list[EncodedText]:
        """The source tokens of each text."""
        if request.source_ids is not None:
            return [EncodedText(ids=ids) for ids in self._checked_ids(request.source_ids, request.fields, most)]
        task, truncate = request.task, request.generation.truncate
        if truncate is None and task is not None and task.truncates:
            truncate = most
        language = request.source_language
        if language is None:
            language = self._language(None if task is None else task.src_lang, "src_lang")
        return await self.codec.encode(
            request.texts, fields=request.fields, limit_tokens=most, truncate=truncate, language=language
        )

    def _checked_ids(self, sources: list[list[int]], fields: Sequence[str], most: int) -> list[list[int]]:
        """Token ids that a caller made: as they are, with the end token behind them if it is not there."""
        spec = self.resolved.found.model.spec
        ended = [ids if ids[-1] == spec.eos_id else [*ids, spec.eos_id] for ids in sources]
        for ids, where in zip(ended, fields, strict=True):
            if len(ids) > most:
                raise InvalidInputError(
                    f"{where} has {len(ids)} tokens, but the model takes at most {most}: send fewer"
                )
            if not all(0 <= token < spec.vocab_size for token in ids):
                raise InvalidInputError(
                    f"{where} has a token outside the vocabulary: use ids from 0 to {spec.vocab_size - 1}"
                )
        return ended

    def _language(self, code: str | None, name: str) -> int | None:
        return None if code is None else self.codec.language_id(code, where=f"parameters.{name}")

    async def _parameters(self, request: TextRequest, more: Mapping[str, Any], ready: Ready) -> GenerationParameters:
        """The requested parameters, with defaults from the model's own generation_config; invalid ones are refused."""
        asked = request.generation
        given = {**asked.given(), **more}
        if not given["logprobs"]:
            given.pop("top_n_tokens", None)  # they would be shown nowhere
        if asked.forced_bos_token is not None:
            where = "parameters.forced_bos_token"
            given["forced_bos_token_id"] = self.codec.token_id(asked.forced_bos_token, where=where)
        target = self._language(None if request.task is None else request.task.tgt_lang, "tgt_lang")
        if target is not None:
            given["forced_bos_token_id"] = target
        if asked.decoder_input_text:
            prefix = await self.codec.encode_prefix(
                asked.decoder_input_text,
                where="parameters.decoder_input_text",
                limit_tokens=ready.limits.max_new_tokens,
            )
            # A forced first token must come first here too: behind a prefix, nothing else would force it.
            first = given.get("forced_bos_token_id", ready.defaults.parameters.forced_bos_token_id)
            given["prefix_ids"] = tuple(prefix if first is None or prefix[:1] == [first] else [first, *prefix])
        try:
            parameters = ready.defaults.resolve(given)
            check_parameters(
                parameters,
                limits=ready.limits,
                vocab_size=self.resolved.found.model.spec.target_vocab_size,
                eos_ids=ready.defaults.eos_ids,
            )
        except BadParameterError as error:
            raise InvalidInputError(f"{request.where(error.name)} {error.problem}") from error
        return parameters


def _check_reported(parameters: GenerationParameters, request: TextRequest, *, streamed: bool, most: int) -> None:
    """Refuse an answer that would be many megabytes, of which other callers would have to wait for the encoding.

    Raises:
        InvalidInputError: it could report more than `most` tokens.
    """
    each = parameters.num_return_sequences * parameters.max_new_tokens * (1 + parameters.top_n_tokens)
    if parameters.logprobs and not streamed and len(request.texts) * each > most:
        raise InvalidInputError(
            f"the details could have {len(request.texts) * each} tokens, but an answer reports at most {most}: ask for "
            "fewer texts, sequences, tokens or top_n_tokens, or for no details"
        )


def _description(resolved: ResolvedVariant, baseline: bool) -> ModelDescription:
    return ModelDescription(
        version="" if resolved.version is None else str(resolved.version),
        digest=resolved.digest or "",
        parent=resolved.parent or "",
        decoder_layers=len(resolved.found.model.spec.decoder),
        encoder_sparsity=round(resolved.found.model.spec.encoder_sparsity, 4),
        dtype=resolved.request.engine.dtype,
        baseline=baseline,
        engine=resolved.engine,
    )
