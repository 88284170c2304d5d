"""Tokens in, tokens out: continuous batching over one model.

Sequences join and leave at every step. A step is: plan who runs, encode the newcomers, advance everyone by one token,
commit the tokens. One thread owns an engine; nothing here locks.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_store.spec import ModelSpec
from server.engine.backend import Backend, Feed
from server.engine.errors import BadRequestError, LoadError
from server.engine.sampling import greedy, peak_logprobs
from server.engine.scheduler import Move, Scheduler
from server.engine.sequence import (
    EngineConfig,
    EngineLimits,
    FinishReason,
    GenerationParameters,
    Sequence,
    Status,
    TokenEvent,
)
from server.engine.torch_backend import TorchBackend

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """What the last step did."""

    encode_s: float = 0.0  # 0 where nobody was admitted
    decode_s: float = 0.0
    batch_size: int = 0  # sequences advanced by one token
    source_tokens: int = 0  # encoded, without padding
    padding_tokens: int = 0  # encoded for nothing
    running: int = 0  # after the step
    waiting: int = 0  # after the step


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One token for each running sequence, in the order of their slots."""

    tokens: list[int]
    peaks: list[float]  # the logit of each token; not finite where any of its row was NaN or +inf
    logprobs: list[float] | None


class Engine:
    """A loaded model, its scheduler and its backend."""

    def __init__(self, spec: ModelSpec, backend: Backend, config: EngineConfig, *, default_max_new_tokens: int) -> None:
        """Callers use `Engine.load`."""
        self.spec = spec
        self.limits = EngineLimits(
            max_source_tokens=config.max_source_tokens,
            max_new_tokens=config.max_new_tokens,
            slots=config.slots,
        )
        self.default_max_new_tokens = default_max_new_tokens
        self.step_stats = StepStats()
        self._backend = backend
        self._scheduler = Scheduler(slots=config.slots, max_encode_tokens=config.max_encode_tokens)

    @classmethod
    def load(cls, directory: Path, config: EngineConfig) -> "Engine":
        """Load a model directory: config.json, generation_config.json (optional), model.safetensors.

        Raises:
            LoadError: a file is missing or broken, the weights do not fit the config, the dtype or the device is
                not available, or the caches do not fit into memory.
            model_store.errors.UnsupportedModelError: config.json describes another architecture.
        """
        dtype = _dtype(config)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        spec = ModelSpec.from_config(_read_json(directory / "config.json"))
        backend = _make_backend(directory, spec, config, dtype)
        return cls(spec, backend, config, default_max_new_tokens=_default_max_new_tokens(directory, config))

    @property
    def idle(self) -> bool:
        """Whether no sequence waits or runs."""
        return self._scheduler.idle

    def memory_bytes(self) -> dict[str, int]:
        """Memory that the engine holds from load to end: `weights` and `cache`."""
        return self._backend.memory_bytes()

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its tokens come from `step`.

        Raises:
            BadRequestError: it is outside the engine's limits, or its id is in use.
        """
        self._check(sequence)
        self._scheduler.add(sequence)

    def cancel(self, sequence_id: int) -> bool:
        """Drop a sequence that waits or runs: no event of it comes any more. False if it is not there."""
        sequence = self._scheduler.remove(sequence_id, Status.CANCELLED)
        if sequence is None:
            return False
        sequence.finished_s = time.monotonic()
        return True

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """Admit, encode, and advance every running sequence by one token; nothing to do gives no events."""
        planned_s = time.monotonic()
        plan = self._scheduler.plan()
        running = self._scheduler.running
        if not running:
            return []
        self._move(plan.moves, running)
        padding_tokens = self._encode(plan.admitted) if plan.admitted else 0
        encoded_s = time.monotonic()
        sampled = self._decode(running)
        decoded_s = time.monotonic()
        for sequence in plan.admitted:
            sequence.admitted_s, sequence.encoded_s = planned_s, encoded_s
        events = self._commit(running, sampled, decoded_s)
        self.step_stats = StepStats(
            encode_s=encoded_s - planned_s if plan.admitted else 0.0,
            decode_s=decoded_s - encoded_s,
            batch_size=len(running),
            source_tokens=sum(len(sequence.source_ids) for sequence in plan.admitted),
            padding_tokens=padding_tokens,
            running=len(self._scheduler.running),
            waiting=self._scheduler.waiting,
        )
        return events

    def generate(self, sources: list[list[int]], parameters: GenerationParameters) -> list[Sequence]:
        """Run all sources to their end; the results are in the order of `sources`.

        Raises:
            BadRequestError: a source is outside the engine's limits; nothing was run then.
        """
        assert not self._scheduler.running, "generate is for an engine that serves nobody else"
        sequences = [Sequence(id=i, source_ids=source, parameters=parameters) for i, source in enumerate(sources)]
        for sequence in sequences:
            self._check(sequence)
        for sequence in sorted(sequences, key=lambda s: -len(s.source_ids)):  # alike lengths pad each other least
            self._scheduler.add(sequence)
        while not self.idle:
            self.step()
        return sequences

    def check_integrity(self) -> None:
        """Assert what must hold between two steps, for tests."""
        self._scheduler.check_integrity()

    def _check(self, sequence: Sequence) -> None:
        source, limits, wanted = sequence.source_ids, self.limits, sequence.parameters.max_new_tokens
        if not source:
            raise BadRequestError("the source is empty: give at least one token")
        if len(source) > limits.max_source_tokens:
            raise BadRequestError(
                f"the source has {len(source)} tokens, but this model is loaded for at most "
                f"{limits.max_source_tokens}: shorten it"
            )
        if min(source) < 0 or max(source) >= self.spec.vocab_size:
            bad = min(source) if min(source) < 0 else max(source)
            raise BadRequestError(
                f"token {bad} is outside the vocabulary of {self.spec.vocab_size}: use this model's tokenizer"
            )
        if not 1 <= wanted <= limits.max_new_tokens:
            raise BadRequestError(f"max_new_tokens is {wanted}: it must be from 1 to {limits.max_new_tokens}")
        if sequence.id in self._scheduler:
            raise BadRequestError(f"id {sequence.id} is in use: ids must be unique among what waits or runs")

    def _move(self, moves: list[Move], running: list[Sequence]) -> None:
        for move in moves:
            sequence = running[move.target]
            self._backend.move(
                move.source, move.target, source_length=len(sequence.source_ids), length=len(sequence.tokens)
            )

    def _encode(self, admitted: list[Sequence]) -> int:
        slots = [[sequence.slot] for sequence in admitted if sequence.slot is not None]
        return self._backend.encode([sequence.source_ids for sequence in admitted], slots)

    def _decode(self, running: list[Sequence]) -> Sampled:
        rows = list(range(len(running)))
        feed = Feed(
            tokens=[s.tokens[-1] if s.tokens else self.spec.decoder_start_id for s in running],
            positions=[len(s.tokens) for s in running],
            slots=rows,
            wanted=rows,
        )
        logits_NV = self._backend.decode(feed)
        choice = greedy(logits_NV)
        wants_logprobs = any(sequence.parameters.logprobs for sequence in running)
        return Sampled(
            tokens=choice.tokens_N.tolist(),
            peaks=choice.peaks_N.tolist(),
            logprobs=peak_logprobs(logits_NV, choice.peaks_N).tolist() if wants_logprobs else None,
        )

    def _commit(self, running: list[Sequence], sampled: Sampled, now_s: float) -> list[TokenEvent]:
        """Give each sequence its token, and take those out that ended."""
        events = []
        for i, sequence in enumerate(running):
            if not math.isfinite(sampled.peaks[i]):
                events.append(self._fail(sequence, now_s))
                continue
            token, logprob = sampled.tokens[i], None
            sequence.tokens.append(token)
            if sampled.logprobs is not None and sequence.parameters.logprobs:
                logprob = sampled.logprobs[i]
                sequence.logprobs.append(logprob)
            if sequence.first_token_s is None:
                sequence.first_token_s = now_s
            reason = self._finish_reason(sequence)
            if reason is not None:
                sequence.finish_reason = reason
                self._end(sequence, Status.FINISHED, now_s)
            events.append(TokenEvent(sequence_id=sequence.id, token=token, logprob=logprob, finish_reason=reason))
        return events

    def _finish_reason(self, sequence: Sequence) -> FinishReason | None:
        if sequence.tokens[-1] == self.spec.eos_id and not sequence.parameters.ignore_eos:
            return FinishReason.EOS
        if len(sequence.tokens) == sequence.parameters.max_new_tokens:
            return FinishReason.LENGTH
        return None

    def _fail(self, sequence: Sequence, now_s: float) -> TokenEvent:
        assert sequence.slot is not None, f"sequence {sequence.id} does not run"
        self._backend.clear(sequence.slot)
        sequence.error = (
            f"the model's scores became NaN or infinite at token {len(sequence.tokens) + 1}: "
            "its weights are damaged, or its dtype is too narrow for this input"
        )
        self._end(sequence, Status.FAILED, now_s)
        return TokenEvent(sequence_id=sequence.id, token=None, error=sequence.error)

    def _end(self, sequence: Sequence, status: Status, now_s: float) -> None:
        self._scheduler.remove(sequence.id, status)
        sequence.finished_s = now_s


def _make_backend(directory: Path, spec: ModelSpec, config: EngineConfig, dtype: torch.dtype) -> Backend:
    return TorchBackend.load(directory, spec, config, dtype)


def _dtype(config: EngineConfig) -> torch.dtype:
    if config.dtype not in _DTYPES:
        raise LoadError(f"dtype {config.dtype!r} is not supported: use one of {', '.join(_DTYPES)}")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise LoadError(f"device {config.device!r} is not available on this machine: use 'cpu'")
    if config.dtype == "float16" and config.device == "cpu":
        raise LoadError("dtype 'float16' is for CUDA devices: use 'bfloat16' or 'float32' on a CPU")
    return _DTYPES[config.dtype]


def _default_max_new_tokens(directory: Path, config: EngineConfig) -> int:
    """What generation_config.json says, within the engine's limit; the limit itself where it says nothing."""
    path = directory / "generation_config.json"
    settings = _read_json(path) if path.exists() else {}
    wanted = settings.get("max_new_tokens")
    if wanted is None and isinstance(settings.get("max_length"), int):
        wanted = settings["max_length"] - 1  # transformers counts the decoder's start token
    if wanted is None:
        return config.max_new_tokens
    if not isinstance(wanted, int) or wanted < 1:
        raise LoadError(f"{path}: max_new_tokens is {wanted!r}: it must be a whole number from 1")
    return min(wanted, config.max_new_tokens)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{path} is not there: a model directory holds config.json") from None
    except ValueError as error:
        raise LoadError(f"{path} is not JSON ({error}): copy or pull the model again") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds {type(content).__name__}, not an object: copy or pull the model again")
    return content
