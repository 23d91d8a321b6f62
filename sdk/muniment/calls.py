"""One call of a tool as a backend sees it: what came in with it, what was decided, and who calls."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from muniment.errors import Denied, Unavailable

# What the platform takes of a request (DESIGN: POST /v1/verify), so that a header of a stranger cannot spoil the call.
REQUEST_BOUNDS: Final = {"id": 256, "trace_id": 256, "session_id": 256, "ip": 45, "user_agent": 1024}
MAX_TOKEN: Final = 16_384  # characters; a longer one is refused as malformed, and so is one that was cut here
MAX_TENANT: Final = 256
MAX_PROOF, MAX_URL = 8192, 2048  # characters
NO_PROOF: Final = (
    "?"  # in place of a proof that was not sent as one: the attempt is on record as one that does not hold
)
MAX_AGENTS, MAX_SCOPES = 8, 100  # of one call
AGENT_NAME: Final = re.compile(r"(?=.{1,128}\Z)[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
SCOPE_NAME: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}")  # RFC 6749 section 3.3
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")
_NO_CHARACTER: Final = "\ufffd"
_NONCE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}")

Mode = Literal["interactive", "subagent", "background", "api"]
MODES: Final = frozenset(get_args(Mode))


@dataclass(frozen=True, slots=True)
class Agent:
    """The agents that a call went through, outermost first, and the scopes that the last one was handed (None: all of
    the token's). Names are claims of the backend; scopes only narrow. Raises ValueError for what the platform would not
    take: it says so where the agent is made, not where a user calls."""

    mode: Mode = "interactive"
    chain: tuple[str, ...] = ()
    scopes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"The mode of an agent is one of {', '.join(get_args(Mode))}.")
        if len(self.chain) > MAX_AGENTS or not all(AGENT_NAME.fullmatch(name) for name in self.chain):
            raise ValueError(f"A chain has {MAX_AGENTS} agents at most, named with 1 to 128 characters of ASCII.")
        scopes = self.scopes or ()
        if len(scopes) > MAX_SCOPES or not all(SCOPE_NAME.fullmatch(scope) for scope in scopes):
            raise ValueError(f"An agent is handed {MAX_SCOPES} scopes at most, named as RFC 6749 section 3.3 has it.")

    def delegate(self, name: str, scopes: tuple[str, ...] | None, mode: Mode) -> Agent:
        """The agent that this one hands work to: one more name, and never a scope that this one was not handed. They
        are compared as names, since only the platform knows what a scope implies. Raises ValueError, for the ninth name
        too: an agent that hands on without end is stopped here."""
        return Agent(mode, (*self.chain, name), self._no_more_than(scopes))

    def joined(self, claimed: Agent) -> Agent:
        """This agent, and then those that a client claims that it went through: these only narrow. Raises
        ValueError."""
        if claimed == Agent():
            return self
        mode = claimed.mode if self.mode == "interactive" else self.mode
        return Agent(mode, (*self.chain, *claimed.chain), self._no_more_than(claimed.scopes))

    def _no_more_than(self, scopes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if self.scopes is None or scopes is None:
            return scopes if self.scopes is None else self.scopes
        return tuple(scope for scope in scopes if scope in self.scopes)

    def body(self) -> dict[str, Any]:
        """The member `agent` of a verify call."""
        return {"mode": self.mode, "chain": list(self.chain)} | (
            {} if self.scopes is None else {"scopes": list(self.scopes)}
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """The verified user of a call that was allowed, and through which client it came. `scopes` are the effective ones;
    `record` is the id of the decision in the log; `agents` are the names that the call went through."""

    uid: str
    issuer: str
    sub: str = field(repr=False)
    email: str | None = field(repr=False)
    tenant: str | None
    roles: tuple[str, ...]
    client: str
    client_name: str
    tool: str
    scopes: tuple[str, ...]
    record: str
    agents: tuple[str, ...] = ()
    assertion: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the platform decided of one call. It is true where it allows, so that `if guard.verify(...)` means what it
    says. `answer` is the whole answer (DESIGN: POST /v1/verify)."""

    decision: Literal["allow", "deny"]
    reason: str
    explanation: str
    status: int
    record: str
    flagged: bool
    policy_version: int
    caller: Caller | None
    required: tuple[str, ...]
    effective: tuple[str, ...]
    missing: tuple[str, ...]
    remedy: str | None
    www_authenticate: str | None
    retry_after: int | None
    answer: Mapping[str, Any] = field(repr=False)
    # For the header DPoP-Nonce of the backend's own answer (RFC 9449 section 8).
    dpop_nonce: str | None = None

    @property
    def allowed(self) -> bool:
        """Whether the tool may be called."""
        return self.decision == "allow" and self.caller is not None

    def __bool__(self) -> bool:
        return self.allowed

    def require(self) -> Caller:
        """The verified caller. Raises Denied."""
        if self.decision != "allow" or self.caller is None:
            raise Denied(self)
        return self.caller


def decision_of(answer: Mapping[str, Any], agent: Agent, tool: str) -> Decision:
    """The answer to a verify call of a tool, read. Raises KeyError, TypeError or ValueError for what is none, also for
    an allow of another tool: then nothing was decided."""
    scopes = answer["scopes"]
    allowed = answer["decision"] == "allow"
    if answer["decision"] not in ("allow", "deny") or (allowed and not (answer["subject"] and answer["client"])):
        raise ValueError("neither an allow of somebody nor a denial")
    if allowed and answer["tool"]["name"] != tool:
        raise ValueError("an allow of another tool")
    return Decision(
        decision=answer["decision"],
        reason=str(answer["reason"]),
        explanation=str(answer["explanation"]),
        status=int(answer["status"]),
        record=str(answer["record"]),
        flagged=bool(answer["flagged"]),
        policy_version=int(answer["policy_version"]),
        caller=_caller(answer, agent) if allowed else None,
        required=tuple(scopes["required"]),
        effective=tuple(scopes["effective"]),
        missing=tuple(scopes["missing"]),
        remedy=answer.get("remedy"),
        www_authenticate=answer.get("www_authenticate"),
        retry_after=answer.get("retry_after"),
        answer=answer,
        dpop_nonce=header_value(answer.get("dpop_nonce")),
    )


def header_value(value: Any) -> str | None:
    """A nonce that may stand in a header (RFC 9449 section 8.1: no space, quote or backslash); None for any other."""
    return value if isinstance(value, str) and _NONCE.fullmatch(value) else None


def _caller(answer: Mapping[str, Any], agent: Agent) -> Caller:
    subject, client, tool = answer["subject"], answer["client"], answer["tool"]
    if not (isinstance(subject["uid"], str) and subject["uid"]):
        raise ValueError("no uid")
    return Caller(
        uid=subject["uid"],
        issuer=subject["issuer"],
        sub=subject["sub"],
        email=subject["email"],
        tenant=subject["tenant"],
        roles=tuple(subject["roles"]),
        client=client["slug"],
        client_name=client["name"],
        tool=tool["name"],
        scopes=tuple(answer["scopes"]["effective"]),
        record=str(answer["record"]),
        agents=agent.chain,
        assertion=answer.get("assertion"),
    )


@dataclass(slots=True)
class Prepared:
    """What came of asking the platform for a call before its body is reached, as a middleware does that must answer
    403 in HTTP: a decision, or the outage. It serves one call of one tool, with the token that it came with."""

    tool: str
    result: Decision | Unavailable
    used: bool = False
    _left: list[bool] = field(default_factory=lambda: [True], repr=False)

    def take(self, tool: str) -> Decision | Unavailable | None:
        """What came of it, once, for that tool; else None."""
        if self.tool != tool:
            return None
        try:
            self._left.pop()  # at once, whatever other thread asks
        except IndexError:
            return None
        self.used = True
        return self.result


@dataclass(frozen=True, slots=True)
class Dpop:
    """The DPoP proof that came with a request (RFC 9449): the header, and the method and URL of the request. `request`
    is a name of our own: it tells the platform that all calls which are made to serve this request share its proof, and
    is never one that a client sent."""

    proof: str = field(repr=False)
    method: str
    url: str = field(repr=False)
    request: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)

    def body(self) -> dict[str, str]:
        """The member `dpop` of a verify call, held to what the platform takes: a proof that cannot be sent becomes one
        that does not hold, and the query, which no proof is of, is left out."""
        sound = len(self.proof) <= MAX_PROOF and self.proof.isascii() and self.proof.isprintable()
        return {
            "proof": self.proof if sound else NO_PROOF,
            "method": self.method.encode("ascii", "replace").decode()[:32] or "?",
            "url": _CONTROL.sub("", self.url.partition("?")[0])[:MAX_URL] or "?",
            "request": self.request,
        }


@dataclass(frozen=True, slots=True)
class Incoming:
    """What a backend was sent: the user's token, and what is recorded of the request: `id`, `trace_id`, `session_id`,
    `ip`, `user_agent`; and what proves that a token which is bound is the caller's: a DPoP proof, and the SHA-256 of
    the client's certificate in base64url (RFC 8705). Made by an adapter, or by `guard.request(...)`."""

    token: str | None = field(repr=False)
    request: Mapping[str, str] = field(default_factory=dict, repr=False)
    agent: Agent = field(default_factory=Agent)
    tenant: str | None = None
    prepared: Prepared | None = None
    dpop: Dpop | None = None
    certificate: str | None = field(default=None, repr=False)


def request_info(**given: str | None) -> dict[str, str]:
    """The members of `request` that are there, held to what the platform takes: control characters are left out, what
    is too long is cut, and an `ip` that is none is dropped."""
    found = {}
    for name, value in given.items():
        text = _CONTROL.sub(" ", value).strip()[: REQUEST_BOUNDS[name]] if value else ""
        if text and (name != "ip" or _ADDRESS.fullmatch(text)):
            found[name] = text
    return found


def sendable(token: str | None) -> str | None:
    """A token as it can be sent: one that no JWS can be stays one that none can be."""
    return None if token is None else token[: MAX_TOKEN + 1].encode("ascii", "replace").decode("ascii")


def sendable_tenant(tenant: str | None) -> str | None:
    """A tenant as it can be sent. It is a rule of the call: one that no tenant can be, perhaps of a stranger's header,
    must neither fail the call as a fault of the backend nor be left out, so it stays one that no user is of."""
    if tenant is None or (0 < len(tenant) <= MAX_TENANT and not _CONTROL.search(tenant)):
        return tenant
    return f"{_CONTROL.sub(_NO_CHARACTER, tenant)[: MAX_TENANT - 1]}{_NO_CHARACTER}"


NOBODY = Incoming(None)
_incoming: ContextVar[Incoming] = ContextVar("muniment_incoming", default=NOBODY)
_caller_now: ContextVar[Caller | None] = ContextVar("muniment_caller", default=None)


def current_caller() -> Caller | None:
    """The verified user of the tool that runs now; None outside of one, and in one that runs without the platform."""
    return _caller_now.get()


def incoming() -> Incoming:
    """What came in with the request that is served now; nobody's where nothing was set."""
    return _incoming.get()


@contextmanager
def receiving(given: Incoming) -> Iterator[Incoming]:
    """Serve a request: tools that are called within are called with its token."""
    reset = _incoming.set(given)
    # Who was verified for an outer call was not verified for this request.
    caller = _caller_now.set(None)
    try:
        yield given
    finally:
        _caller_now.reset(caller)
        _incoming.reset(reset)


@contextmanager
def delegating(name: str, scopes: tuple[str, ...] | None, mode: Mode) -> Iterator[Agent]:
    """Hand work to a sub-agent: tools that are called within are called by it."""
    agent = _incoming.get().agent.delegate(name, scopes, mode)
    # A decision that was made for the outer agent is none for this one.
    reset = _incoming.set(replace(_incoming.get(), agent=agent, prepared=None))
    try:
        yield agent
    finally:
        _incoming.reset(reset)


@contextmanager
def calling(caller: Caller | None) -> Iterator[None]:
    """Run a tool's body as a verified caller, or as nobody."""
    reset = _caller_now.set(caller)
    try:
        yield
    finally:
        _caller_now.reset(reset)
