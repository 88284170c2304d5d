import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from server.telemetry import logs
from server.telemetry.request_record import RequestRecord, TraceIds, begin


@pytest.fixture
def root() -> Iterator[None]:
    """The loggers as they were, afterwards."""
    root, server = logging.getLogger(), logging.getLogger("server")
    before = (root.handlers, root.level, server.level)
    yield
    root.handlers, root.level, server.level = before
    logging.captureWarnings(False)


def lines(captured: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in captured.splitlines()]


def test_every_logger_writes_one_json_object_a_line(root: None, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    logging.getLogger("server.a").info("two\nlines %d \N{SNOWMAN}", 2, extra={"fields": {"status": 200}})
    logging.getLogger("uvicorn.error").error("of a library")
    logging.getLogger("server.a").debug("too little")
    logging.getLogger("uvicorn.error").info("progress of a library")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("server.b").exception("it failed")
    captured = capsys.readouterr().err
    assert captured.isascii()
    first, library, failed = lines(captured)
    assert (first["message"], first["status"], first["level"]) == ("two\nlines 2 \N{SNOWMAN}", 200, "info")
    assert (library["logger"], library["level"]) == ("uvicorn.error", "error")
    assert str(first["time"]).endswith("Z")
    assert "ValueError: broken" in str(failed["exception"])


def test_lines_of_a_request_have_its_ids_as_long_as_it_lasts(root: None, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    logger = logging.getLogger("server.a")

    async def in_a_task_of_its_own(record: RequestRecord) -> None:
        begin(record)
        await asyncio.create_task(asyncio.to_thread(logger.info, "within"))
        record.over = True
        logger.info("afterwards")

    async def main() -> None:
        record = RequestRecord(
            request_id="r1", method="POST", path="/", trace=TraceIds("t" * 32, "s" * 16, sampled=True)
        )
        await asyncio.create_task(in_a_task_of_its_own(record))
        logger.info("elsewhere")

    asyncio.run(main())
    within, afterwards, elsewhere = lines(capsys.readouterr().err)
    assert (within["request_id"], within["trace_id"], within["span_id"]) == ("r1", "t" * 32, "s" * 16)
    assert "request_id" not in afterwards
    assert "request_id" not in elsewhere


def test_in_text_what_a_client_sends_cannot_look_like_a_line_of_ours(
    root: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("text", "info")
    fields = {"status": 200, "path": "/a\nERROR server: forged", "empty": "", "quoted": 'a"b'}
    logging.getLogger("server.access").info("request", extra={"fields": fields})
    assert capsys.readouterr().err == (
        'INFO server.access: request status=200 path="/a\\nERROR server: forged" empty="" quoted="a\\"b"\n'
    )


def test_a_worker_logs_in_its_servers_form(
    root: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in logs.worker_environment("json", "warning", "g2p@dense").items():
        monkeypatch.setenv(name, value)
    logs.configure_worker()
    logging.getLogger("server.worker").info("too little")
    logging.getLogger("server.worker").warning("enough")
    [line] = lines(capsys.readouterr().err)
    assert (line["worker"], line["message"]) == ("g2p@dense", "enough")


def test_why_a_server_ends_has_the_form_of_its_logs(root: None, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text", "info")
    logs.say_error("no model")
    assert capsys.readouterr().err == "error: no model\n"
    logs.configure("json", "info")
    logs.say_error("no model")
    assert lines(capsys.readouterr().err)[0]["message"] == "no model"
