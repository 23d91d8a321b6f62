"""No token passes the filter, wherever in a log record it is."""

import io
import logging

from hypothesis import given
from hypothesis import strategies as st

from muniment.redaction import HIDDEN, RedactTokens, redact
from tests.world import token

KEY = "mk_abcdefghijkl_5ecret-Part_of-it"


def logged(*arguments: object, **more: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactTokens())
    logger = logging.getLogger("muniment.test.redaction")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        logger.error(*arguments, **more)  # type: ignore[arg-type]
    finally:
        logger.removeHandler(handler)
    return stream.getvalue()


def test_tokens_and_keys_are_hidden_and_the_rest_is_left() -> None:
    text = f"GET /x Authorization: Bearer {token()} key={KEY} done"
    assert redact(text) == f"GET /x Authorization: Bearer {HIDDEN} key=mk_abcdefghijkl_{HIDDEN} done"
    assert redact("memory.recall took 3 ms") == "memory.recall took 3 ms"


def test_they_are_hidden_in_arguments_in_exceptions_and_in_wrong_formats() -> None:
    secret = token()
    assert secret not in logged("token %s", secret)
    assert secret not in logged("token %s %s", secret)
    assert secret not in logged("%s", {"headers": {"authorization": f"bearer {secret}"}})
    try:
        raise ValueError(f"bad token {secret}")
    except ValueError:
        found = logged("failed", exc_info=True)
    assert secret not in found and "ValueError" in found


@given(st.text(alphabet="abcXYZ012_-~+/.", min_size=8, max_size=60))
def test_whatever_follows_bearer_is_hidden(opaque: str) -> None:
    assert opaque not in redact(f"authorization: BEARER {opaque}")
