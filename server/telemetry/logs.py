"""The form of the logs: lines for people, or one JSON object a line, the same from the API process and its workers."""

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from server.telemetry.request_record import current

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
FORMAT_VARIABLE, LEVEL_VARIABLE, REF_VARIABLE = "NASH_LOG_FORMAT", "NASH_LOG_LEVEL", "NASH_WORKER_REF"

_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), default=str).encode


class JsonLines(logging.Formatter):
    """`time`, `level`, `logger`, `message`, `pid`; the `request_id` and `trace_id` of a request; a record's fields."""

    def __init__(self, always: Mapping[str, Any]) -> None:
        """`always`: fields of every line."""
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        document = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **self._always,
            **_of_the_request(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return _encode(document)


class TextLines(logging.Formatter):
    """`LEVEL LOGGER: message`, and a record's fields as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        if not fields:
            return super().format(record)
        # Quoted where they have blanks or line ends: what a client sends must not look like a line of ours.
        told = " ".join(f"{name}={value if _plain(value) else _encode(value)}" for name, value in fields.items())
        return f"{super().format(record)} {told}"


def configure(form: str, level: str) -> None:
    """Let this process log to standard error, in one of FORMATS, from one of LEVELS on."""
    ref = os.environ.get(REF_VARIABLE)
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonLines({} if ref is None else {"worker": ref}))
    else:
        who = "" if ref is None else f" {os.getpid()}"
        handler.setFormatter(TextLines(f"%(levelname)s %(name)s{who}: %(message)s"))
    logging.getLogger().handlers = [handler]
    logging.captureWarnings(True)
    set_level(level)


def set_level(level: str) -> None:
    """What is told from now on. Libraries tell less than the server: their progress interests nobody."""
    ours = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger("server").setLevel(ours)
    logging.getLogger().setLevel(max(ours + 10, logging.INFO) if ours < logging.WARNING else ours)


def say_error(error: str) -> None:
    """Why this process ends. For people without a logger's name, as commands do."""
    handlers = logging.getLogger().handlers
    if handlers and isinstance(handlers[0].formatter, JsonLines):
        logging.getLogger("server").error("%s", error)
    else:
        print(f"error: {error}", file=sys.stderr)


def worker_environment(form: str, level: str, ref: str) -> dict[str, str]:
    """What lets a worker log as its server does."""
    return {FORMAT_VARIABLE: form, LEVEL_VARIABLE: level, REF_VARIABLE: ref}


def configure_worker() -> None:
    """Log as the environment says that `worker_environment` made."""
    configure(os.environ.get(FORMAT_VARIABLE, "text"), os.environ.get(LEVEL_VARIABLE, "info"))


def _of_the_request() -> dict[str, str]:
    record = current()
    if record is None:
        return {}
    trace = {} if record.trace is None else {"trace_id": record.trace.trace_id, "span_id": record.trace.span_id}
    return {"request_id": record.request_id, **trace}


def _plain(value: object) -> bool:
    text = str(value)
    return text.isprintable() and text.isascii() and " " not in text and '"' not in text and text != ""
