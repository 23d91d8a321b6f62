"""Asking an issuer about a token that only it can judge (RFC 7662): one question for all threads that have the same
one, few at a time, none while it does not answer; what it says is used again for a while, and what it does not say is
an outage, never a denial.

Neither a token nor the secret of ours gets into a log, an error or the database.
"""

import logging
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from threading import Event, Lock, local
from typing import Any, Final, NamedTuple
from urllib.parse import quote_plus, urlencode

from cryptography.exceptions import InvalidTag
from django.conf import settings
from django.db import connection

from audit.protection import KeyDestroyed, KeyRing, reveal
from clients import introspection_answers as answers
from clients.claims import MAX_DATE, Identity, Refused
from clients.fetching import FORM, FetchError, Network, post
from clients.introspection_answers import BadAnswer
from clients.jwks import IntrospectionPolicy, IssuerPolicy

logger = logging.getLogger(__name__)

TIMEOUT: Final = 3.0  # seconds for one question, all in all
CONCURRENT: Final = 8  # questions to one issuer at once; a web process has 16 threads
PATIENCE: Final = 10.0  # seconds after which a batch of calls asks no more
PAUSE: Final = 2.0  # seconds in which an issuer that did not answer is left alone
NEGATIVE: Final = 3  # seconds for which "not active" is kept, at most
MAX_KEPT: Final = 10_000
MAX_NEGATIVE: Final = 1_000
MAX_BODY_KEPT: Final = 4096  # bytes of an answer; the identity that is read from a longer one is kept all the same
NOTED: Final = 60.0  # seconds between notes of how asking goes, where nothing changes
CHANGED: Final = 1.0  # the same, where it does
MAX_ERROR: Final = 250  # characters, as in Introspection.error
UNAVAILABLE: Final = "The issuer could not be asked about the token."

# Whoever holds the row, such as a form that is being saved, is not waited for.
NOTE: Final = """
    UPDATE clients_introspection
    SET error = %(error)s,
        failed_at = CASE WHEN %(error)s = '' THEN failed_at ELSE clock_timestamp() END,
        answered_at = CASE WHEN %(error)s = '' THEN clock_timestamp() ELSE answered_at END
    WHERE id = (SELECT id FROM clients_introspection WHERE issuer_id = %(issuer)s FOR UPDATE SKIP LOCKED)
"""


class _Key(NamedTuple):
    """What an answer is the answer to. `version` is that of the policy for a signed one, since the keys that it was
    checked with are policy."""

    issuer_id: int
    how: IntrospectionPolicy
    version: int
    digest: bytes


class _Said(NamedTuple):
    """What the issuer said: `claims` None where the token is not active. Times are seconds since the epoch; the bound
    counts from when the question was sent."""

    claims: dict[str, Any] | None
    asked_at: float
    until: float


@dataclass(slots=True)
class _Question:
    """One question under way, and what came of it."""

    done: Event = field(default_factory=Event)
    said: _Said | None = None
    refusal: Refused | None = None


@dataclass(slots=True)
class _Line:
    """How many questions one issuer is asked now. After one without an answer it is left alone `until`, by the
    monotonic clock; then one question alone finds out whether it is back."""

    asking: int = 0
    silent: bool = False
    until: float = 0.0
    noted: str | None = None
    noted_at: dict[bool, float] = field(default_factory=dict)  # a failure, and an answer, by the monotonic clock


class _Desk:
    """What one process asks, has asked and was told. `_lock` is held for no longer than it takes to look."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[_Key, _Said] = {}
        self._inactive: dict[_Key, _Said] = {}
        self._questions: dict[_Key, _Question] = {}
        self._lines: dict[int, _Line] = {}

    def kept(self, key: _Key, now: float) -> _Said | None:
        """An answer that may be used again."""
        said = self._kept.get(key) or self._inactive.get(key)
        return said if said is not None and now < said.until else None

    def keep(self, key: _Key, said: _Said) -> None:
        """Keep an answer, in place of the oldest. Tokens that are made up push out no others."""
        shelf, most = (self._inactive, MAX_NEGATIVE) if said.claims is None else (self._kept, MAX_KEPT)
        with self._lock:
            self._kept.pop(key, None)
            self._inactive.pop(key, None)
            if len(shelf) >= most:
                del shelf[next(iter(shelf))]
            shelf[key] = said

    def begin(self, key: _Key, now: float) -> tuple[_Question, bool]:
        """The question about this token, and whether the caller is to ask it. Raises Refused where the issuer is asked
        too much already, or did not answer."""
        with self._lock:
            if said := self.kept(key, now):  # since a moment ago
                return _Question(_set(), said), False
            line = self._lines.setdefault(key.issuer_id, _Line())
            if line.silent and (line.asking or time.monotonic() < line.until):
                raise Refused("issuer_unavailable", UNAVAILABLE)
            if found := self._questions.get(key):
                return found, False
            if line.asking >= CONCURRENT:
                raise Refused("issuer_unavailable", "The issuer is being asked about many tokens already.")
            line.asking += 1
            self._questions[key] = made = _Question()
            return made, True

    def end(self, key: _Key, question: _Question, silent: bool | None) -> None:
        """A question is over, and those that wait for it go on. `silent`: whether it had no answer; None: unknown."""
        with self._lock:
            line = self._lines.setdefault(key.issuer_id, _Line())
            line.asking = max(0, line.asking - 1)
            self._questions.pop(key, None)
            if silent is not None:
                line.silent, line.until = silent, time.monotonic() + PAUSE
        question.done.set()

    def note(self, issuer_id: int, error: str) -> None:
        """Tell staff how asking goes: at once when that changes, but not at every call."""
        now = time.monotonic()
        with self._lock:
            line = self._lines.setdefault(issuer_id, _Line())
            last = line.noted_at.get(bool(error))
            if last is not None and now - last < (NOTED if error == line.noted else CHANGED):
                return
            line.noted, line.noted_at[bool(error)] = error, now
        if error:
            logger.warning("introspection by issuer %s failed: %s", issuer_id, error)
        with connection.cursor() as cursor:
            cursor.execute(NOTE, {"issuer": issuer_id, "error": error[:MAX_ERROR]})

    def clear(self) -> None:
        """Forget everything; for tests."""
        with self._lock:
            for one in (self._kept, self._inactive, self._lines):
                one.clear()


def _set() -> Event:
    event = Event()
    event.set()
    return event


desk = _Desk()
_patience = local()


@contextmanager
def patience() -> Iterator[None]:
    """For calls that are decided together: a slow issuer does not keep this thread for their number times its answer.
    What is beyond PATIENCE is an outage."""
    _patience.ends = time.monotonic() + PATIENCE
    try:
        yield
    finally:
        _patience.__dict__.pop("ends", None)


def identify(
    token: str, digest: bytes, issuer: IssuerPolicy, audiences: frozenset[str], now: float, version: int
) -> Identity:
    """Who a token speaks of, by what its issuer says. `digest` is its SHA-256, `now` seconds since the epoch, `version`
    that of the policy. Raises Refused: `issuer_unavailable` for an outage; UnknownSigner, which is a Refused too, when
    fetching the issuer's keys might help."""
    how = issuer.introspection
    if how is None:
        raise Refused("token_malformed", "the issuer is not set to introspection")
    key = _Key(issuer.id, how, version if how.signed else 0, digest)
    said = desk.kept(key, now) or _asked(key, token, issuer, now)
    if said.claims is None:
        raise Refused("token_invalid", "the issuer says that the token is not active")
    return answers.identity_of(said.claims, issuer, audiences, now, said.asked_at)


def _asked(key: _Key, token: str, issuer: IssuerPolicy, now: float) -> _Said:
    """The answer to one question, whoever asks it. Raises Refused."""
    if time.monotonic() > getattr(_patience, "ends", float("inf")):
        raise Refused("issuer_unavailable", "The issuer is too slow for so many tokens at once.")
    question, mine = desk.begin(key, now)
    if mine:
        _ask(key, question, token, issuer)
    elif not question.done.wait(TIMEOUT + 1):
        raise Refused("issuer_unavailable", UNAVAILABLE)
    if question.refusal is not None:
        raise question.refusal
    if question.said is None:  # the thread that asked failed unexpectedly
        raise Refused("issuer_unavailable", UNAVAILABLE)
    return question.said


def _ask(key: _Key, question: _Question, token: str, issuer: IssuerPolicy) -> None:
    """Ask, keep and note what comes of it; the question ends however this ends."""
    silent, error = None, ""
    try:
        question.said = _answer(key, token, issuer)
        silent = False
    except FetchError as failure:
        # What else is answered may be the fault of this one token, for which the others must not pay.
        silent, error = failure.status in (None, 429, 502, 503, 504), _words(failure)
        question.refusal = Refused("issuer_unavailable", UNAVAILABLE)
    except BadAnswer as bad:
        silent, error = False, str(bad)
        question.refusal = Refused("issuer_unavailable", "The issuer's answer about the token cannot be believed.")
    except Refused as refusal:
        silent, error = False, refusal.detail
        question.refusal = refusal
    finally:
        desk.end(key, question, silent)
    desk.note(key.issuer_id, error)


def _answer(key: _Key, token: str, issuer: IssuerPolicy) -> _Said:
    """One exchange. Raises FetchError, BadAnswer or UnknownSigner."""
    how = key.how
    fields = {"token": token, "token_type_hint": "access_token"}
    authorization = _authenticated(how, fields)
    asked_at = time.time()
    answer = post(
        how.endpoint,
        urlencode(fields).encode("ascii"),
        FORM,
        accept=answers.SIGNED if how.signed else answers.PLAIN,
        authorization=authorization,
        allowed_networks=_networks(how),
        allow_loopback_http=settings.MUNIMENT_DEMO,
        timeout=TIMEOUT,
        max_bytes=answers.MAX_ANSWER,
    )
    claims = answers.claims_of(answer.media_type, answer.body, issuer, how, time.time())
    said = _Said(claims, asked_at, asked_at + _seconds(claims, asked_at, how.cache_seconds))
    if len(answer.body) <= MAX_BODY_KEPT and said.until > asked_at:
        desk.keep(key, said)
    return said


def _networks(how: IntrospectionPolicy) -> list[Network]:
    """Where the endpoint may be besides public addresses. Raises FetchError for a network that was mistyped."""
    try:
        return [ip_network(one, strict=False) for one in how.allowed_networks]
    except ValueError as error:
        raise FetchError(str(error), 0) from None


def _seconds(claims: dict[str, Any] | None, asked_at: float, bound: int) -> float:
    """For how long an answer may be used again: never beyond `exp`."""
    if claims is None:
        return min(bound, NEGATIVE)
    exp = claims.get("exp")
    # What is no date is refused when the claims are read; it may be a number that no float holds.
    return min(bound, exp - asked_at) if isinstance(exp, int | float) and 0 <= exp <= MAX_DATE else bound


def _authenticated(how: IntrospectionPolicy, fields: dict[str, str]) -> str | None:
    """Our own credentials (RFC 6749 section 2.3.1): the value of the Authorization header, or further `fields`. Raises
    FetchError, with a status since the issuer is not to blame, where there is no secret that opens."""
    if how.secret is None:
        raise FetchError("no secret is set with which to ask it", 0)
    try:
        secret = reveal(KeyRing().get(how.holder), how.secret, how.holder.encode()).decode()
    except (KeyDestroyed, InvalidTag, UnicodeDecodeError):
        raise FetchError("the secret with which to ask it cannot be opened", 0) from None
    if how.method == "client_secret_post":
        fields |= {"client_id": how.client_id, "client_secret": secret}
        return None
    return "Basic " + b64encode(f"{quote_plus(how.client_id)}:{quote_plus(secret)}".encode()).decode()


def _words(failure: FetchError) -> str:
    if failure.status == 401:
        return "the server answered 401: it does not accept our client id and secret"
    return str(failure)
