"""How every process writes its log: one line for each event, on standard error, as JSON or as text.

No line holds a token, a key, a password or an address of a person, whatever was put into it: what looks like one, and
every secret that this process was given, is taken out when the line is made, from traces of exceptions too. A line is
one line, whatever was put into it: nobody who has something logged can forge another.

Pure: the settings import it.
"""

import itertools
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

MOST_MESSAGE, MOST_TRACE = 8_192, 16_384  # characters
TOO_LONG = "... (cut)"
HIDDEN = "[hidden]"
SHORTEST_SECRET = 8  # a shorter one would take words out of every line
LOOKS_SECRET = 16
WORDS = re.compile(r"[^\s'\",{}\[\]]+")
FORMATS = ("json", "text")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# Each leaves its first group, which says what was there.
PATTERNS = [
    re.compile(pattern, flags)
    for pattern, flags in (
        (r"(-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----)[A-Za-z0-9+/=\s\\-]*", 0),
        # The whole value of a header or member that carries credentials (RFC 9110 section 11.6.2).
        (r"((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic|dpop|digest|negotiate)\s+)?[^\s'\",;]+",
         re.I),
        (r"(\b(?:bearer|basic|dpop)\s+)[A-Za-z0-9._~+/=-]{8,}", re.I),
        (r"((?:set-)?cookie['\"]?\s*:\s*['\"]?)[^\r\n'\"]+", re.I),
        (r"(\b(?:mk|sk|ss|scim_[0-9]{1,18})_)[A-Za-z0-9_-]{4,}", 0),
        (r"(eyJ)[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)*", 0),
        (r"(\b[a-z][a-z0-9+.-]{0,30}://)[^\s/@'\"]*@", re.I),
        (r"(\b(?:password|passwd|pwd|secret|client_secret|api_key|apikey|access_token|refresh_token|id_token|token|"
         r"pepper|private_key|sub|subject_token|assertion|email|e-mail|login_hint)['\"]?\s*(?:=|:)\s*)"
         r"(?:\"(?:[^\"\\]|\\+.)*\"|'(?:[^'\\]|\\+.)*'|[^\s,;&'\")}\]]+)", re.I),
        (r"()[A-Za-z0-9.!#$%&*+/=?^_`{|}~-]{1,64}(?:@|%40)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]+)+", 0),
    )
]  # fmt: skip
_known: set[str] = set()
_known_pattern: re.Pattern[str] | None = None


def hide(secret: str | None) -> None:
    """From now on no line of this process holds this secret; of text that has URLs in it, what of it may be one."""
    global _known_pattern
    found = set(secrets_in(secret)) if secret and "://" in secret else {secret or ""}
    _known.update(text for text in found if len(text) >= SHORTEST_SECRET)
    ordered = sorted(_known, key=len, reverse=True)
    _known_pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None


def secrets_in(text: str) -> Iterator[str]:
    """What of a text (a URL, several, a list in YAML) is secret, or looks like it: the passwords of URLs, as they stand
    there and decoded, and words with letters and digits."""
    for word in {*WORDS.findall(text), *text.split()}:
        if "://" not in word:
            if len(word) >= LOOKS_SECRET and not word.isalpha() and not word.isdecimal():
                yield word
            continue
        try:
            password = urlsplit(word).password
        except ValueError:
            password = word  # nobody knows what of it is secret
        if password:
            yield from (password, unquote(password))


def redacted(text: str) -> str:
    """The text without what looks like a secret or like a person's address, and without known secrets."""
    if _known_pattern is not None:
        text = _known_pattern.sub(HIDDEN, text)
    for pattern in PATTERNS:
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


def cut(text: str, most: int) -> str:
    """The text, or its beginning."""
    return text if len(text) <= most else text[: most - len(TOO_LONG)] + TOO_LONG


# --- which call a line is of ------------------------------------------------------------------------------

_request: ContextVar[int] = ContextVar("request", default=0)
_numbers = itertools.count(1)
_run = secrets.token_hex(4)


def request_id() -> str | None:
    """The id of the request that this thread answers, ours and never the caller's; None outside of one."""
    number = _request.get()
    return f"{_run}-{os.getpid()}-{number}" if number else None


class Numbered:
    """Middleware, the outermost: every request has a number, by which its lines in the log are found together."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        """Answer it under a number of its own."""
        before = _request.set(next(_numbers))
        try:
            return self.get_response(request)
        finally:
            _request.reset(before)


# --- formatters -------------------------------------------------------------------------------------------


class _Lines(logging.Formatter):
    """What both have in common: the words, and the trace of an exception, both redacted."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def words(self, record: logging.LogRecord) -> str:
        try:
            said = record.getMessage()
        except Exception as error:  # arguments that do not fit are no reason to lose the line, or to print them
            said = f"a message that cannot be put together ({type(error).__name__})"
        # Cut first, so that what a caller makes long costs no time; and after, since a secret that was cut is one too.
        return cut(redacted(cut(said, 2 * MOST_MESSAGE)), MOST_MESSAGE)

    def trace(self, record: logging.LogRecord) -> str:
        if not record.exc_info and not record.exc_text and not record.stack_info:
            return ""
        told = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else record.exc_text
        whole = "\n".join(part for part in (told, record.stack_info) if part)
        return redacted(whole[-MOST_TRACE:])  # its end says what was wrong


class JsonLines(_Lines):
    """One JSON object a line: ts, level, logger, process, pid, message; request and trace where there are such."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. ASCII, so that no character of another alphabet ends it."""
        said: dict[str, Any] = {
            "ts": moment(record.created),
            "level": record.levelname,
            "logger": record.name,
            "process": self.process,
            "pid": record.process,
            "message": self.words(record),
        }
        if (request := request_id()) is not None:
            said["request"] = request
        if trace := self.trace(record):
            said["trace"] = trace
        return json.dumps(said, ensure_ascii=True)


class TextLines(_Lines):
    """For people: time, level, logger, words. What would begin a line of its own is escaped, or, in a trace, indented
    behind a bar."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the lines of its trace."""
        line = f"{moment(record.created)} {record.levelname} {record.name} {printable(self.words(record))}"
        trace = self.trace(record)
        return line + "".join(f"\n  | {printable(part)}" for part in trace.splitlines())


def printable(text: str) -> str:
    """The text with what is not printable (line ends, escape sequences of terminals) escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def moment(seconds: float) -> str:
    """A time as RFC 3339 writes it, in UTC, to the microsecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def configuration(process: str, level: str, form: str) -> dict[str, Any]:
    """Django's LOGGING for one process. `form` is json or text."""
    kind = "governance.logs.JsonLines" if form == "json" else "governance.logs.TextLines"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": kind, "process": process}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            # Django's own would mail administrators, and print requests with their query strings.
            "django": {"handlers": [], "level": "INFO", "propagate": True},
            "django.server": {"handlers": [], "level": "ERROR", "propagate": True},
            "django.request": {"level": "ERROR"},
            # They tell of credentials at INFO, and sign aloud at DEBUG.
            "botocore": {"level": "WARNING"},
            "paramiko": {"level": "WARNING"},
            # granian has a handler of its own, for a terminal.
            "_granian": {"handlers": [], "propagate": True},
            "granian.access": {"handlers": [], "level": "CRITICAL", "propagate": False},
        },
    }
