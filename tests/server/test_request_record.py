import pytest

from server.errors import ClientGoneError, GenerationError, InvalidInputError, OverloadedError, TimedOutError
from server.telemetry.request_record import RecordedRun, RequestRecord
from tests.server.test_otel import ANSWER, FakeGeneration


def run(outcome: object, **state: bool) -> RecordedRun:
    return RecordedRun("m@dense", "m", "dense", "unary", FakeGeneration(outcome, **state))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "error", "outcomes", "told"),
    [
        (200, None, [], "ok"),
        (200, None, [ANSWER, ANSWER], "ok"),
        (404, None, [], "client_error"),
        (503, None, [], "rejected"),  # GET /health/ready while a model loads
        (500, None, [], "error"),
        (None, None, [], "cancelled"),  # the client left before an answer was begun
        (422, InvalidInputError("x"), [], "client_error"),
        (429, OverloadedError("x"), [], "rejected"),
        (200, None, [ANSWER, GenerationError("x")], "error"),  # in the middle of a stream
        (504, TimedOutError("x"), [ClientGoneError("x"), TimedOutError("x")], "timeout"),
        (200, None, [ClientGoneError("x")], "cancelled"),
        (200, None, [ValueError("x")], "error"),
    ],
)
def test_the_outcome_is_that_of_the_metrics(
    status: int | None, error: InvalidInputError | None, outcomes: list[object], told: str
) -> None:
    record = RequestRecord(request_id="r", method="POST", path="/", status=status, error=error)
    record.runs += [run(outcome) for outcome in outcomes]
    assert record.outcome == told


@pytest.mark.parametrize("status", [200, 500])
def test_a_fault_is_an_error_even_after_an_answer_was_begun(status: int) -> None:
    record = RequestRecord(request_id="r", method="POST", path="/", status=status, fault=True)
    record.runs.append(run(ANSWER))
    assert record.outcome == "error"


def test_tokens_are_summed_and_times_are_the_slowest() -> None:
    record = RequestRecord(request_id="r", method="POST", path="/", refs=["m@dense"])
    record.runs += [run(ANSWER), run(ANSWER, cached=True), run(GenerationError("x"))]
    assert record.fields() == {
        "model": "m@dense",
        "generations": 3,
        "input_tokens": 9,
        "output_tokens": 6,
        "cached": 1,
        "queue_ms": 1.0,
        "encode_ms": 2.0,
        "decode_ms": 4.0,
        "time_to_first_token_ms": 3.5,
    }


def test_a_request_without_generations_says_no_more_than_where_it_went() -> None:
    record = RequestRecord(request_id="r", method="POST", path="/compare", refs=["m@dense", "m@pruned"])
    assert record.fields() == {"model": "m@dense,m@pruned"}
