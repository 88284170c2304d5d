import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.interface.config import EngineConfig, EngineLimits
from server.engine.interface.generation_config import GenerationDefaults
from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason, Hypothesis, Timings, TopToken
from server.messages import (
    Cancel,
    Command,
    Failed,
    Finished,
    FrameBuffer,
    Load,
    LoadFailed,
    Ping,
    Pong,
    ProtocolError,
    Ready,
    Report,
    Stats,
    Submit,
    TokenReport,
    Tokens,
    decode_command,
    decode_report,
    encode,
    id_of_malformed,
)

PARAMETERS = GenerationParameters(
    max_new_tokens=5, logprobs=True, seed=2**64 - 1, bad_words=((3, 4), (5,)), early_stopping=True, temperature=0.5
)
SUBMIT = Submit(
    id=7, source_ids=[3, 4, 1], parameters=PARAMETERS, stream=False, arrived_s=12.5, queued_s=12.5, queue_limit_s=30.0
)
COMMANDS: list[Command] = [
    Load(directory="/models/a", config=EngineConfig(threads=2, dtype="bfloat16")),
    SUBMIT,
    Cancel(id=7),
    Ping(),
]
REPORTS: list[Report] = [
    Ready(
        limits=EngineLimits(max_source_tokens=512, max_new_tokens=256, slots=32),
        defaults=GenerationDefaults(
            parameters=GenerationParameters(max_new_tokens=24, early_stopping="never", num_beams=2),
            max_length=25,
            min_length=None,
            most_new_tokens=256,
            eos_ids=(1, 2),
            decoder_start_id=0,
        ),
        memory_bytes={"weights": 10, "cache": 20},
        load_s=1.5,
    ),
    LoadFailed(error="no"),
    Pong(),
    Tokens(
        reports=[
            TokenReport(
                id=7,
                token=3,
                logprob=-0.25,
                top_tokens=[TopToken(id=3, logprob=-0.25)],
                at_ms=4.5,
                queue_ms=1.0,
                encode_ms=0.5,
            ),
            TokenReport(id=8, token=4, logprob=None, top_tokens=[], at_ms=0.0, queue_ms=0.0, encode_ms=0.0),
        ]
    ),
    Finished(
        id=7,
        hypotheses=[
            Hypothesis(
                tokens=[3, 1],
                finish_reason=FinishReason.EOS,
                score=-0.5,
                logprobs=[-0.25, -0.5],
                top_tokens=[[TopToken(id=3, logprob=-0.25)], []],
            ),
            Hypothesis(tokens=[4], finish_reason=FinishReason.LENGTH, score=None, logprobs=[], top_tokens=[]),
        ],
        timings=Timings(
            queue_ms=0.1,
            encode_ms=1.0,
            decode_ms=2.0,
            total_ms=3.1,
            time_to_first_token_ms=1.5,
            time_per_output_token_ms=None,
        ),
    ),
    Failed(id=7, kind="validation", error="too long"),
    Stats(
        decode_step_s=[0.001],
        encode_s=[],
        batch_sizes=[2],
        source_tokens=3,
        padding_tokens=1,
        generated_tokens=2,
        running=1,
        waiting=0,
        cache_used_ratio={"self": 0.5, "cross": 0.25},
        peak_bytes=1 << 40,
        steps_by_path={"graph": 3},
        source_lookups={"hit": 1, "miss": 2},
    ),
]


def frames(data: bytes, cut: int) -> list[bytes]:
    """The payloads of `data`, which arrives `cut` bytes at a time."""
    buffer = FrameBuffer()
    found: list[bytes] = []
    for start in range(0, len(data), cut):
        found += buffer.feed(data[start : start + cut])
    return found


@pytest.mark.parametrize("cut", [1, 3, 10_000])
def test_commands_and_reports_come_back_as_they_were(cut: int) -> None:
    assert [decode_command(payload) for payload in frames(encode(COMMANDS), cut)] == COMMANDS
    assert [decode_report(payload) for payload in frames(encode(REPORTS), cut)] == REPORTS


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 50))
def test_any_payloads_survive_any_cutting(payloads: list[bytes], cut: int) -> None:
    data = b"".join(struct.pack(">I", len(payload)) + payload for payload in payloads)
    assert frames(data, cut) == payloads


def test_a_frame_that_claims_too_much_is_refused_before_it_is_gathered() -> None:
    with pytest.raises(ProtocolError, match="4294967295 bytes"):
        list(FrameBuffer().feed(b"\xff\xff\xff\xff"))


@given(st.binary(max_size=60))
def test_garbage_is_a_protocol_error_and_nothing_else(payload: bytes) -> None:
    for decode in (decode_command, decode_report):
        try:
            decode(payload)
        except ProtocolError:
            continue
    id_of_malformed(payload)


def test_a_submit_with_a_wrong_type_still_tells_its_id() -> None:
    (payload,) = frames(encode([SUBMIT]), 1000)
    bad = payload.replace(b"\x93\x03\x04\x01", b"\x93\x03\xa1x\x01")  # a text among the tokens
    assert bad != payload
    with pytest.raises(ProtocolError, match="not a command"):
        decode_command(bad)
    assert id_of_malformed(bad) == 7
    assert id_of_malformed(b"\xc1") is None


def test_an_answer_that_no_frame_holds_becomes_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.messages.MAX_FRAME_BYTES", 200)
    huge = Hypothesis(tokens=[7] * 500, finish_reason=FinishReason.LENGTH, score=None, logprobs=[], top_tokens=[])
    timings = Timings(
        queue_ms=0.0,
        encode_ms=0.0,
        decode_ms=0.0,
        total_ms=0.0,
        time_to_first_token_ms=0.0,
        time_per_output_token_ms=None,
    )
    [payload] = FrameBuffer().feed(encode([Finished(id=7, hypotheses=[huge], timings=timings)]))
    report = decode_report(payload)
    assert isinstance(report, Failed)
    assert (report.id, report.kind) == (7, "validation")
    assert "ask for fewer tokens" in report.error
