import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from model_store.errors import CorruptStoreError
from model_store.store import Store
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.messages import (
    Cancel,
    Command,
    Failed,
    Finished,
    FrameBuffer,
    Load,
    Report,
    Stats,
    Submit,
    Tokens,
    decode_report,
    encode,
)
from server.worker.stats import StatsCollector
from server.worker.worker import EndOfInput, Link, Worker, WorkerEngine, _load_engine
from tests.engine.made_up_backend import POISON, make_engine
from tests.server.fake_engine import FAILS_ALONE, RUNS_FOR_EVER, FakeEngine
from tests.tiny_models import build_tiny_t5


class Api:
    """The other end of a worker's socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._frames = FrameBuffer()
        self._reports: list[Report] = []

    def send(self, *commands: Command) -> None:
        self.connection.sendall(encode(commands))

    def next(self, *kinds: type[Report]) -> Report:
        """The next report of one of `kinds`; others are dropped."""
        while True:
            while self._reports:
                report = self._reports.pop(0)
                if isinstance(report, kinds):
                    return report
            data = self.connection.recv(65536)
            assert data, "the worker closed its end"
            self._reports += [decode_report(payload) for payload in self._frames.feed(data)]


def submit(request_id: int, source: list[int], *, stream: bool = False, tokens: int = 8, queue_s: float = 9) -> Submit:
    return Submit(
        id=request_id,
        source_ids=source,
        parameters=GenerationParameters(max_new_tokens=tokens, logprobs=True),
        stream=stream,
        arrived_s=time.monotonic(),
        queued_s=time.monotonic(),
        queue_limit_s=queue_s,
    )


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path)


@pytest.fixture
def api(engine: FakeEngine) -> Iterator[Api]:
    with working(engine) as api:
        yield api


@contextlib.contextmanager
def working(engine: WorkerEngine) -> Iterator[Api]:
    """A worker of this engine, in a thread."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    ended = threading.Event()

    def work() -> None:
        try:
            Worker(engine, Link(theirs), StatsCollector(engine.limits)).run()
        except EndOfInput:
            ended.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield Api(ours)
    ours.close()
    assert ended.wait(10), "a worker ends when its socket is closed"


def test_a_request_that_is_not_streamed_is_answered_once(api: Api) -> None:
    api.send(submit(1, [5, 6, 7]))
    report = api.next(Tokens, Finished, Failed)
    assert isinstance(report, Finished)
    assert (report.id, report.tokens, report.finish_reason.value) == (1, [5, 6, 7, 1], "eos_token")
    assert report.logprobs == [-0.5] * 4
    assert report.timings.total_ms >= report.timings.queue_ms >= 0


def test_a_streamed_request_reports_all_tokens_but_the_last(api: Api) -> None:
    api.send(submit(1, [5, 6, 7], stream=True))
    seen: list[int] = []
    while isinstance(report := api.next(Tokens, Finished), Tokens):
        seen += [token.token for token in report.reports]
    assert seen == [5, 6, 7]
    assert isinstance(report, Finished)
    assert report.tokens == [5, 6, 7, 1]


def test_more_requests_than_slots_all_end(api: Api) -> None:
    api.send(*(submit(i, [4 + i]) for i in range(9)))
    finished = [api.next(Finished) for _ in range(9)]
    assert {report.id: report.tokens[0] for report in finished if isinstance(report, Finished)} == {
        i: 4 + i for i in range(9)
    }


def test_what_the_engine_refuses_is_answered_and_harms_nobody(api: Api) -> None:
    api.send(submit(1, [5] * 17), submit(2, [FAILS_ALONE]), submit(3, [6]))
    reports = {report.id: report for report in (api.next(Finished, Failed) for _ in range(3))}  # type: ignore[union-attr]
    assert reports[1] == Failed(id=1, kind="validation", error="17 tokens: at most 16")
    assert reports[2] == Failed(id=2, kind="generation", error="scores became NaN")
    assert isinstance(reports[3], Finished)


def test_malformed_frames_are_answered_where_they_can_be_and_skipped_else(api: Api) -> None:
    (good,) = FrameBuffer().feed(encode([submit(4, [5, 6, 7])]))
    for payload in (b"\xc1", b"", b"\x91\xa6Submit", good.replace(b"\x93\x05\x06\x07", b"\x93\x05\xa1x\x07")):
        api.connection.sendall(len(payload).to_bytes(4, "big") + payload)
    api.send(submit(5, [6]))
    failed, finished = api.next(Failed, Finished), api.next(Failed, Finished)
    assert isinstance(failed, Failed)
    assert (failed.id, failed.kind) == (4, "validation")
    assert isinstance(finished, Finished)
    assert finished.id == 5


def test_a_cancelled_request_frees_its_slot_and_is_heard_of_no_more(api: Api, engine: FakeEngine) -> None:
    api.send(submit(1, [RUNS_FOR_EVER], stream=True, tokens=1000), submit(2, [RUNS_FOR_EVER], tokens=1000))
    api.next(Tokens)
    api.send(Cancel(id=1), Cancel(id=2), Cancel(id=99), submit(3, [6]))
    report = api.next(Finished, Failed)
    assert isinstance(report, Finished)
    assert report.id == 3
    assert engine.idle


def test_a_request_that_waits_too_long_for_a_slot_is_given_up(api: Api) -> None:
    api.send(*(submit(i, [RUNS_FOR_EVER], tokens=100) for i in (1, 2)), submit(3, [6], queue_s=0.05))
    report = api.next(Finished, Failed)
    assert report == Failed(
        id=3,
        kind="timeout",
        error="waited 0.05 s and no slot came free: try again later, or send less at once",
    )
    assert {api.next(Finished, Failed).id for _ in range(2)} == {1, 2}  # type: ignore[union-attr]


def test_stats_count_every_step_and_end_with_nothing_running(api: Api) -> None:
    api.send(submit(1, [5, 6]), submit(2, [7, 8, 9]))
    steps = generated = source = 0
    while True:
        stats = api.next(Stats)
        assert isinstance(stats, Stats)
        assert len(stats.decode_step_s) == len(stats.batch_sizes)
        steps, generated = steps + len(stats.batch_sizes), generated + stats.generated_tokens
        source += stats.source_tokens
        if stats.running == 0:
            break
    assert (generated, source) == (3 + 4, 2 + 3)
    assert steps >= 4
    assert stats.waiting == 0
    assert stats.cache_used_ratio == {"self": 0.0, "cross": 0.0}
    assert stats.peak_bytes > 1_000_000


@pytest.mark.parametrize("fields", [{"num_beams": 3}, {"do_sample": True, "seed": 4}])
def test_several_answers_come_at_once_even_where_they_are_streamed(fields: dict[str, Any]) -> None:
    engine, _ = make_engine()
    parameters = GenerationParameters(
        max_new_tokens=6, num_return_sequences=3, top_n_tokens=2, suppress_tokens=(POISON,), **fields
    )
    with working(engine) as api:
        api.send(msgspec.structs.replace(submit(1, [5, 6, 7], stream=True), parameters=parameters))
        report = api.next(Tokens, Finished, Failed)
    assert isinstance(report, Finished)
    assert len(report.hypotheses) == 3
    scores = [hypothesis.score or 0.0 for hypothesis in report.hypotheses]
    assert scores == sorted(scores, reverse=True)
    assert report.tokens == report.hypotheses[0].tokens
    assert all(len(each.top_tokens) == len(each.tokens) for each in report.hypotheses)


def test_a_model_whose_scores_are_not_finite_is_not_served(tmp_path: Path) -> None:
    directory = build_tiny_t5(tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    tensors["encoder.final_layer_norm.weight"][:] = torch.nan
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"model: the model's scores became NaN or infinite at token 1"):
        _load_engine(Load(directory=str(directory), config=EngineConfig(threads=1)))


def test_a_worker_verifies_each_time_it_loads(tmp_path: Path) -> None:
    """A version's files may change between the lives of two workers."""
    store = Store(tmp_path / "store")
    store.publish("tiny", build_tiny_t5(tmp_path / "model"))
    view, files = store.checkout("tiny"), store.resolve("tiny").manifest.files
    named = tuple((file.path, file.sha256, file.size) for file in files)
    load = Load(directory=str(view), config=EngineConfig(threads=1), files=named)
    assert _load_engine(load) is not None
    weights = view / "model.safetensors"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0x80  # the sign of one weight
    weights.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=f"{weights} has sha256"):
        _load_engine(load)


def test_a_streamed_token_carries_the_best_ones_at_its_place() -> None:
    engine, _ = make_engine()
    parameters = GenerationParameters(max_new_tokens=4, top_n_tokens=2, logprobs=True, ignore_eos=True)
    with working(engine) as api:
        api.send(msgspec.structs.replace(submit(1, [5, 6, 7], stream=True), parameters=parameters))
        report = api.next(Tokens, Finished, Failed)
    assert isinstance(report, Tokens)
    assert report.reports[0].top_tokens[0].id == report.reports[0].token
    assert report.reports[0].top_tokens[0].logprob == pytest.approx(report.reports[0].logprob)
