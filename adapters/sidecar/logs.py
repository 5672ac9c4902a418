"""Logs as one JSON object a line, without anything of a request's text."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import Any, TextIO

LOGGER = logging.getLogger("midstream.sidecar")
FIELDS = "midstream"
"""The attribute of a record that holds its fields."""

LEVELS = ("debug", "info", "warning", "error")

PLACES = 6
"""Innermost frames that are told of an error."""


class JsonLines(logging.Formatter):
    """time, level, logger, event, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line. A foreign record may quote a request, so it is named by where it was made."""
        instant = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        ours = record.name == LOGGER.name
        line: dict[str, Any] = {
            "time": f"{instant}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage() if ours else f"{record.filename}:{record.lineno}",
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line.update(told(record.exc_info[1]))
        return json.dumps(line, default=str)


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Send what the process logs to a stream, by default stderr."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    LOGGER.setLevel(level.upper())


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with fields, none of which is a client's text."""
    LOGGER.log(level, name, extra={FIELDS: fields})


def log_call(method: str, code: str, seconds: float, peer: str) -> None:
    """A call that ended."""
    event("call", method=method, code=code, seconds=round(seconds, 6), peer=peer)


def log_fault(method: str, error: Exception) -> str:
    """A fault of ours. The id it is logged under."""
    name = uuid.uuid4().hex[:12]
    event("fault", logging.ERROR, id=name, method=method, **told(error))
    return name


def told(error: BaseException) -> dict[str, Any]:
    """What is logged of an error: its type, and where it was raised. Its message may quote text."""
    frames = traceback.extract_tb(error.__traceback__)[-PLACES:]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "places": places}
