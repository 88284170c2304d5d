"""Tokens in, tokens out: continuous batching over one model.

Sequences join and leave at every step. A step plans what runs, encodes the newcomers, decodes all sequences, chooses
how each continues, and commits that. One thread owns an engine; nothing here locks.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from server.engine.backend import Backend, Feed, Progress
from server.engine.capabilities import check_threads, engine_name
from server.engine.choice.beam import Candidate
from server.engine.choice.decoding import Decoding
from server.engine.choosing import Chosen, choose
from server.engine.dtype_choice import with_dtype
from server.engine.errors import BadRequestError
from server.engine.interface.config import EngineConfig, EngineLimits
from server.engine.interface.generation_config import GenerationDefaults, with_seed
from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import TopToken
from server.engine.interface.validation import check_parameters, check_source
from server.engine.loading import make_backend, read_defaults
from server.engine.machine.cpus import usable_cpus
from server.engine.machine.topology import default_threads
from server.engine.scheduler import Move, Scheduler
from server.engine.sequence import Row, Sequence, Status, TokenEvent
from server.engine.source_queue import SourceQueue, slot_of
from server.engine.turns import Kind, Turns

_MOST_AHEAD = 64  # most steps run ahead; their choices need room

_NOT_FINITE = (
    "the model's scores became NaN or infinite at token {number}: "
    "its weights are damaged, or its dtype is too narrow for this input"
)
_ALL_FORBIDDEN = (
    "every token is forbidden at token {number}: allow more through no_repeat_ngram_size, bad_words, suppress_tokens "
    "or min_new_tokens"
)


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """What the last step did."""

    encode_s: float = 0.0  # 0 if nothing was encoded
    decode_s: float = 0.0
    steps: int = 1  # decoded in sequence; more than one if the backend ran ahead
    batch_size: int = 0  # rows decoded: a sequence has one, or one per beam or sample
    generated_tokens: int = 0  # in all steps; a beam search of any width makes one per step
    source_tokens: int = 0  # of sources whose encoding finished, without padding
    padding_tokens: int = 0  # encoded for nothing
    source_hits: int = 0  # sources that were read from the cache
    source_misses: int = 0  # sources that were not in it
    path: str | None = None  # "graph" or "eager"; None if the backend replays nothing


class Engine:
    """A loaded model, its scheduler and its backend."""

    def __init__(
        self, spec: ModelSpec, backend: Backend, config: EngineConfig, *, defaults: GenerationDefaults
    ) -> None:
        """Callers use `Engine.load`; `defaults` are the model's own."""
        self.spec = spec
        self.limits = EngineLimits.of(config)
        self.defaults = defaults
        self.step_stats = StepStats()
        self._backend = backend
        self._ahead_s = config.ahead_s if backend.runs_ahead else 0.0
        self._turns = Turns() if backend.rows_cost else None
        self._scheduler = Scheduler(
            slots=config.slots,
            spare=config.spare_slots,
            max_encode_tokens=config.max_encode_tokens,
            max_decode_tokens=config.max_decode_tokens,
        )
        self._sources = SourceQueue(backend, config.source_cache_bytes)
        self._source_cache_bytes = config.source_cache_bytes

    @classmethod
    def load(cls, model: Model, config: EngineConfig, progress: Progress = lambda line: None) -> "Engine":
        """Load a model's weights and its defaults.

        `progress` receives a line about each slow operation. Quality records are not available here, so dtype "auto"
        means float32; a caller that has records uses `dtype_choice` first.

        Raises:
            LoadError: a file is missing or broken, the weights do not fit the config, the dtype, the device or that
                many threads are not available, the caches do not fit into memory, or the model asks for a decoding
                method that this engine does not support.
        """
        config = with_dtype(config)[0]
        threads = _threads(config)
        torch.set_num_threads(threads)
        config = replace(config, threads=threads)
        config = config.within(model.spec.max_positions)
        defaults = read_defaults(model, config)
        backend = make_backend(model, replace(config, slots=config.slots + config.spare_slots), progress)
        return cls(model.spec, backend, config, defaults=defaults)

    @property
    def idle(self) -> bool:
        """Whether no sequence waits or runs."""
        return self._scheduler.idle

    def memory_bytes(self) -> dict[str, int]:
        """Memory that the engine holds from load to end: `weights` and `cache`, with what encoded sources may take."""
        held = self._backend.memory_bytes()
        return {**held, "cache": held["cache"] + self._source_cache_bytes}

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its tokens come from `step`.

        Raises:
            BadRequestError: it is outside the engine's limits, its parameters contradict each other, or its id is in
                use.
        """
        self._check(sequence)
        self._enqueue(sequence)

    def cancel(self, sequence_id: int) -> bool:
        """Drop a waiting or running sequence: it gives no more events. False if it is not there."""
        sequence = self._scheduler.remove(sequence_id, Status.CANCELLED)
        if sequence is None:
            return False
        self._sources.drop(sequence)
        sequence.finished_s = time.monotonic()
        return True

    def step(self) -> list[TokenEvent]:
        """Admit, encode, and advance every running sequence by a token; with nothing to do, return no events.

        If a step is fast and nothing waits, it may advance by several tokens: see `EngineConfig.ahead_s`. A long
        source is encoded over several steps of the others; its sequence advances after that.
        """
        if not self._backend.has_own_threads:
            return self._run_step()
        with _one_torch_thread():
            return self._run_step()

    @torch.inference_mode()
    def _run_step(self) -> list[TokenEvent]:
        planned_s = time.monotonic()
        turn = None
        if self._turns is not None and (kinds := self._scheduler.kinds):
            turn = self._turns.next(kinds)
        plan = self._scheduler.plan(turn)
        rows = self._scheduler.rows
        if not rows:
            return []
        for sequence in (sequence for batch in plan.batches for sequence in batch):
            sequence.admitted_s = planned_s
        self._move(plan.moves)
        decoding = any(row.sequence.encoded_s is not None for row in rows)
        last = self.step_stats
        begun_s = time.monotonic()
        ready = self._sources.run(plan.batches, step_s=last.decode_s / last.steps if decoding else None)
        encoded_s = time.monotonic()
        for sequence in ready:
            sequence.encoded_s = encoded_s
        encoded = [row for row in rows if row.sequence.encoded_s is not None]
        own = [row for row in encoded if turn is None or self._scheduler.kind_of(row.sequence) is turn]
        rows = own or encoded  # others need not wait for a turn that nobody can take
        feed, wanted = self._feed(rows)
        steps = self._decode(feed, wanted, turn)
        step_s = (time.monotonic() - encoded_s) / len(steps)
        events = [
            event
            for made, chosen in enumerate(steps, start=1)
            for event in self._commit(wanted, chosen, encoded_s + made * step_s)
        ]
        if self._turns is not None and turn is not None and own:
            self._turns.spent(turn, time.monotonic() - planned_s)
        self.step_stats = StepStats(
            encode_s=encoded_s - begun_s if self._sources.encoded_tokens or self._sources else 0.0,
            decode_s=time.monotonic() - encoded_s,  # including copies between beams
            steps=len(steps),
            batch_size=len(rows),
            generated_tokens=len(steps) * sum(row.decoding.search is None or row.index == 0 for row in wanted),
            source_tokens=self._sources.encoded_tokens,
            padding_tokens=self._sources.padding_tokens,
            source_hits=self._sources.hits,
            source_misses=self._sources.misses,
            path=self._backend.path,
        )
        return events

    def generate(
        self,
        sources: list[list[int]],
        parameters: GenerationParameters,
        watch: Callable[[int, int], None] | None = None,
    ) -> list[Sequence]:
        """Run all sources to completion; results are in the order of `sources`.

        After every step `watch` receives the number of finished sources and the total.

        Raises:
            BadRequestError: a source or the parameters are outside the engine's limits; then nothing has run.
        """
        assert not self._scheduler.running, "generate is for an engine that serves nobody else"
        sequences = [Sequence(id=i, source_ids=source, parameters=parameters) for i, source in enumerate(sources)]
        for sequence in sequences:
            self._check(sequence)
        for sequence in sorted(sequences, key=lambda s: -len(s.source_ids)):  # similar lengths need the least padding
            self._enqueue(sequence)
        while not self.idle:
            self.step()
            if watch is not None:
                watch(len(sequences) - self._scheduler.running - self._scheduler.waiting, len(sequences))
        return sequences

    def check_integrity(self) -> None:
        """Assert what must hold between steps, for tests."""
        self._scheduler.check_integrity()
        sequences = {row.sequence.id: row.sequence for row in self._scheduler.rows}
        for sequence in sequences.values():
            for row in sequence.rows:
                assert 1 <= row.fresh <= len(row.history), "nothing to decode"
                assert 0 <= row.made < sequence.parameters.max_new_tokens, "too long"

    def _check(self, sequence: Sequence) -> None:
        check_source(sequence.source_ids, limits=self.limits, vocab_size=self.spec.vocab_size)
        check_parameters(
            sequence.parameters,
            limits=self.limits,
            vocab_size=self.spec.target_vocab_size,
            eos_ids=self.defaults.eos_ids,
        )
        if sequence.id in self._scheduler:
            raise BadRequestError(f"id {sequence.id} is in use: ids must be unique among what waits or runs")

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.parameters = with_seed(sequence.parameters)
        sequence.decoding = Decoding(sequence.parameters, self.defaults.eos_ids)
        sequence.begin(self.defaults.decoder_start_id)
        self._scheduler.add(sequence)

    def _move(self, moves: list[Move]) -> None:
        """Move the state of rows to their new slots."""
        for move in moves:
            row = move.row
            length = len(row.history) - row.fresh
            self._backend.move(move.source, move.target, source_length=len(row.sequence.source_ids), length=length)

    def _feed(self, rows: list[Row]) -> tuple[Feed, list[Row]]:
        """What enters the decoder, and the rows whose logits come out."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        wanted: list[int] = []
        wanted_rows = []
        for row in rows:
            length, fresh = len(row.history), row.fresh
            tokens += row.history[length - fresh :]
            positions += range(length - fresh, length)
            slots += [slot_of(row)] * fresh
            if row.decoding.search is None or row.index == 0 or row.made:  # before the first choice all beams are equal
                wanted.append(len(tokens) - 1)
                wanted_rows.append(row)
        return Feed(tokens=tokens, positions=positions, slots=slots, wanted=wanted), wanted_rows

    def _decode(self, feed: Feed, wanted: list[Row], turn: Kind | None) -> list[Chosen]:
        """The result of a step, or of several run ahead: no row ended before the last of them."""
        steps = self._steps_ahead(feed, wanted, turn)
        if steps > 1:
            ends = tuple(wanted[0].decoding.eos_ids)
            made = self._backend.decode_ahead(feed, steps=steps, ends=ends, seconds=self._ahead_s)
            if made:
                return [Chosen(tokens=step.tokens, max_logits=step.max_logits, masked=set()) for step in made]
        return [choose(self._backend.decode(feed), wanted)]

    def _steps_ahead(self, feed: Feed, wanted: list[Row], turn: Kind | None) -> int:
        """How many steps may run ahead: nobody else waits, and all rows want their likeliest token."""
        if self._ahead_s <= 0 or self._sources or self._scheduler.waits(turn):
            return 1
        ends, most = wanted[0].decoding.eos_ids, _MOST_AHEAD
        if len(feed.tokens) != len(wanted):  # prefixes, or beams before their first choice
            return 1
        for row in wanted:
            if row.decoding.eos_ids != ends:
                return 1
            most = min(most, row.decoding.plain_steps(len(row.history)))
        return max(most, 1)

    def _commit(self, wanted: list[Row], chosen: Chosen, now_s: float) -> list[TokenEvent]:
        """Give each row its token, and remove the sequences that ended."""
        events = []
        for i, row in enumerate(wanted):  # before anything changes, so that the order of rows does not matter
            masked = i in chosen.masked
            if (masked or not math.isfinite(chosen.max_logits[i])) and row.sequence.status is Status.RUNNING:
                events.append(self._fail(row.sequence, _ALL_FORBIDDEN if masked else _NOT_FINITE, now_s))
        for i, row in enumerate(wanted):
            sequence = row.sequence
            if sequence.status is not Status.RUNNING:
                continue
            if sequence.first_token_s is None:
                sequence.first_token_s = now_s
            if row.decoding.search is None:
                top_tokens = chosen.top_tokens.get(i, [])
                events += self._extend(row, chosen.tokens[i], chosen.logprobs.get(i), top_tokens, now_s)
            elif i in chosen.top_tokens:
                for beam in [row] if row.made else sequence.rows:  # all beams share the first position
                    beam.top_tokens.append(chosen.top_tokens[i])
        for i, candidates in chosen.candidates.items():
            if wanted[i].sequence.status is Status.RUNNING:
                events += self._advance(wanted[i].sequence, candidates, now_s)
        return events

    def _extend(
        self, row: Row, token: int, logprob: float | None, top_tokens: list[TopToken], now_s: float
    ) -> list[TokenEvent]:
        """Append a token to a row that is not a beam; returns the events."""
        sequence = row.sequence
        row.append(token, logprob, top_tokens)
        told = logprob if sequence.parameters.logprobs else None
        alone = sequence.parameters.rows == 1
        if alone:
            sequence.tokens.append(token)
            if told is not None:
                sequence.logprobs.append(told)
        reason = row.finish_reason
        if reason is not None:
            sequence.hypotheses.append(row.hypothesis(reason))
            if len(sequence.rows) > 1:
                self._scheduler.release(row)
                return []
            self._finish(sequence, now_s)
        if not alone:
            return [] if reason is None else [_decided(sequence, now_s)]
        return [
            TokenEvent(
                sequence_id=sequence.id,
                token=token,
                made_s=now_s,
                logprob=told,
                top_tokens=top_tokens,
                finish_reason=reason,
            )
        ]

    def _advance(self, sequence: Sequence, candidates: list[Candidate], now_s: float) -> list[TokenEvent]:
        """One step of a beam search; returns no events until the search is over."""
        rows, search = sequence.rows, sequence.decoding.search
        assert search is not None, "candidates without a search"
        before, made = len(rows[0].history), rows[0].made
        survivors = search.advance(candidates, rows, made + 1)
        if survivors is None:
            sequence.hypotheses = search.hypotheses
            if not sequence.hypotheses:
                return [self._fail(sequence, _ALL_FORBIDDEN, now_s)]
            self._finish(sequence, now_s)
            return [_decided(sequence, now_s)]
        origins = [rows[survivor.beam] for survivor in survivors]
        slots, origin_slots = [slot_of(row) for row in rows], [slot_of(row) for row in origins]
        if made and slots != origin_slots:  # before the first choice all beams are equal
            self._backend.reorder(slots, origin_slots, before)
        states = [(list(row.history), list(row.logprobs), list(row.top_tokens)) for row in origins]
        for row, survivor, state in zip(rows, survivors, states, strict=True):
            row.history, row.logprobs, row.top_tokens = state
            row.append(survivor.token, survivor.logprob, [])
        return []

    def _finish(self, sequence: Sequence, now_s: float) -> None:
        """End a sequence successfully; it has its hypotheses."""
        sequence.hypotheses.sort(key=lambda each: each.score or 0.0, reverse=True)
        best = sequence.hypotheses[0]
        sequence.tokens, sequence.logprobs, sequence.finish_reason = best.tokens, best.logprobs, best.finish_reason
        self._end(sequence, Status.FINISHED, now_s)

    def _fail(self, sequence: Sequence, reason: str, now_s: float) -> TokenEvent:
        for row in sequence.rows:
            self._backend.clear(slot_of(row))
        sequence.error, sequence.hypotheses = reason.format(number=sequence.rows[0].made + 1), []
        self._end(sequence, Status.FAILED, now_s)
        return TokenEvent(sequence_id=sequence.id, token=None, made_s=now_s, error=sequence.error)

    def _end(self, sequence: Sequence, status: Status, now_s: float) -> None:
        self._scheduler.remove(sequence.id, status)
        sequence.finished_s = now_s


def _threads(config: EngineConfig) -> int:
    """The requested number; else PyTorch's within the quota, which PyTorch does not know, and for the native operator
    at most the cores of one memory node.

    Raises:
        LoadError: more threads than this process may run at once.
    """
    check_threads(config.threads)
    if config.threads is not None:
        return config.threads
    usable = usable_cpus()
    held = min(torch.get_num_threads(), usable)  # OMP_NUM_THREADS or the host program may have lowered it
    return held if engine_name(config) == "torch" else min(held, default_threads(usable))


def _decided(sequence: Sequence, now_s: float) -> TokenEvent:
    return TokenEvent(sequence_id=sequence.id, token=None, made_s=now_s, finish_reason=sequence.finish_reason)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Choosing tokens is little work, and PyTorch's threads spin for a while after each piece of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
