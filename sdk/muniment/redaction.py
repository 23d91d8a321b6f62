"""Keeping tokens and keys out of logs and messages."""

import logging
import re
from typing import Any

# A JWS (RFC 7515 section 7.1) or JWE in compact form; a key of the platform; what follows `Bearer` or `DPoP`.
_KEY = re.compile(r"(?P<key>\b[ms]k_[A-Za-z0-9]{4,}_)[A-Za-z0-9_-]+")
_SECRET = re.compile(
    # A run without a dot is no token, but taken as one match: else each `ey` in it would be looked at to its end.
    r"(?P<jws>ey[A-Za-z0-9_-]{6,}+(?P<rest>(?:\.[A-Za-z0-9_-]*+){1,4})?+)"
    r"|(?P<key>\b[ms]k_[A-Za-z0-9]{4,}_)[A-Za-z0-9_-]+"
    r"|(?P<scheme>(?i:\b(?:bearer|dpop)\s+))[A-Za-z0-9._~+/=-]{8,}"
)
HIDDEN = "[redacted]"


def redact(text: str) -> str:
    """The text with every token and key in it hidden; of a key, its public prefix stays."""
    return _SECRET.sub(_hidden, text)


def _hidden(found: re.Match[str]) -> str:
    if found["jws"] and not found["rest"]:
        return _KEY.sub(lambda key: f"{key['key']}{HIDDEN}", found[0])
    return f"{found['key'] or found['scheme'] or ''}{HIDDEN}"


class RedactTokens(logging.Filter):
    """A filter for a logging handler: nothing that passes it holds a token, not in the arguments either and not in a
    stack trace. `logging.getLogger().handlers[0].addFilter(RedactTokens())`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; always True."""
        record.msg, record.args = redact(_message(record)), ()
        if record.exc_info:
            record.exc_text = redact(record.exc_text or logging.Formatter().formatException(record.exc_info))
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True


def _message(record: logging.LogRecord) -> Any:
    try:
        return record.getMessage()
    except Exception:  # a wrong format must not let the arguments through
        return str(record.msg)
