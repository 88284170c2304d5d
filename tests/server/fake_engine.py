"""An engine without a model: each source is its own answer, so every step is instant and known beforehand.

Run as a module it is a worker, for supervisors to start. A source that begins with one of the ids below does
something else; what a directory is called decides whether it "loads".
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from server.engine.errors import BadRequestError, LoadError
from server.engine.interface.config import EngineLimits
from server.engine.interface.generation_config import GenerationDefaults
from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason, Hypothesis
from server.engine.sequence import Sequence, Status, TokenEvent
from server.messages import Load
from server.worker.worker import WorkerEngine, main

EOS_ID = 1
UNLOADABLE = "broken"
KILLS_THE_WORKER = 900
KILLS_IT_ONCE = 901  # the first time only: it leaves a file in the model's directory
BREAKS_THE_STEP = 902
FAILS_ALONE = 903
RUNS_FOR_EVER = 904  # token after token, to max_new_tokens, slowly
KILLS_IT_AFTER_A_TOKEN = 905

LIMITS = EngineLimits(max_source_tokens=16, max_new_tokens=1000, slots=2)


@dataclass(frozen=True)
class FakeStep:
    encode_s: float
    decode_s: float
    batch_size: int
    generated_tokens: int
    source_tokens: int
    padding_tokens: int
    path: None = None
    source_hits: int = 0
    source_misses: int = 0
    steps: int = 1


class FakeEngine:
    """Two slots, first come, first served."""

    def __init__(self, directory: Path) -> None:
        self.limits = LIMITS
        self.defaults = GenerationDefaults(
            parameters=GenerationParameters(max_new_tokens=8),
            max_length=None,
            min_length=None,
            most_new_tokens=LIMITS.max_new_tokens,
            eos_ids=(EOS_ID,),
            decoder_start_id=0,
        )
        self.step_stats = FakeStep(0.0, 0.0, 0, 0, 0, 0)
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self._directory = directory

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def memory_bytes(self) -> dict[str, int]:
        return {"weights": 1000, "cache": 500}

    def add(self, sequence: Sequence) -> None:
        if len(sequence.source_ids) > self.limits.max_source_tokens:
            raise BadRequestError(f"{len(sequence.source_ids)} tokens: at most 16")
        self.waiting.append(sequence)

    def cancel(self, sequence_id: int) -> bool:
        for group in (self.running, self.waiting):
            for sequence in group:
                if sequence.id == sequence_id:
                    group.remove(sequence)
                    return True
        return False

    def step(self) -> list[TokenEvent]:
        admitted = self.waiting[: self.limits.slots - len(self.running)]
        del self.waiting[: len(admitted)]
        self.running += admitted
        now_s = time.monotonic()
        for sequence in admitted:
            sequence.status = Status.RUNNING
            sequence.admitted_s = sequence.encoded_s = now_s
        self.step_stats = FakeStep(
            encode_s=0.002 if admitted else 0.0,
            decode_s=0.001,
            batch_size=len(self.running),
            generated_tokens=len(self.running),
            source_tokens=sum(len(sequence.source_ids) for sequence in admitted),
            padding_tokens=0,
        )
        return [self._advance(sequence, now_s) for sequence in list(self.running)]

    def _advance(self, sequence: Sequence, now_s: float) -> TokenEvent:
        first, position = sequence.source_ids[0], len(sequence.tokens)
        if first == FAILS_ALONE:
            self._end(sequence, now_s)
            return TokenEvent(sequence_id=sequence.id, token=None, made_s=now_s, error="scores became NaN")
        self._misbehave(first, position)
        endless = first == RUNS_FOR_EVER
        token = 5 if endless else [*sequence.source_ids, EOS_ID][position]
        sequence.tokens.append(token)
        sequence.logprobs.append(-0.5)
        sequence.first_token_s = sequence.first_token_s or now_s
        reason = None
        if token == EOS_ID:
            reason = FinishReason.EOS
        elif len(sequence.tokens) == sequence.parameters.max_new_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            sequence.finish_reason = reason
            sequence.hypotheses = [
                Hypothesis(
                    tokens=sequence.tokens,
                    finish_reason=reason,
                    score=None,
                    logprobs=sequence.logprobs,
                    top_tokens=[],
                )
            ]
            self._end(sequence, now_s)
        return TokenEvent(sequence_id=sequence.id, token=token, made_s=now_s, logprob=-0.5, finish_reason=reason)

    def _misbehave(self, first: int, position: int) -> None:
        if first == RUNS_FOR_EVER:
            time.sleep(0.005)
        if first == BREAKS_THE_STEP:
            raise RuntimeError("the step broke")
        if first == KILLS_THE_WORKER or (first == KILLS_IT_AFTER_A_TOKEN and position == 1):
            time.sleep(0.05)  # so that what was reported before is on its way
            os._exit(9)
        marker = self._directory / "killed-once"
        if first == KILLS_IT_ONCE and not marker.exists():
            marker.touch()
            os._exit(9)

    def _end(self, sequence: Sequence, now_s: float) -> None:
        sequence.finished_s = now_s
        self.running.remove(sequence)


def load_fake(load: Load) -> WorkerEngine:
    """As an engine loads: a directory called `broken` does not, nor one that has a file of that name."""
    if Path(load.directory).name == UNLOADABLE or (Path(load.directory) / UNLOADABLE).exists():
        raise LoadError("the weights do not fit: publish them again")
    return FakeEngine(Path(load.directory))


if __name__ == "__main__":
    main(load_fake)
