"""What a backend may send to verify (DESIGN.md section 4): every member has a length and a character bound, which
hold before anything is queued. Unknown members are ignored; a wrong one is a ValidationError that names it."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

# No control characters, so no NUL; lone surrogates do not pass the decoder.
Text = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
LongText = Annotated[str, Meta(max_length=1024, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"\A[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?\Z")]
ToolName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"\A[A-Za-z0-9_./:-]+\Z")]
ScopeName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"\A[\x21\x23-\x5b\x5d-\x7e]+\Z")]
TypeName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[A-Za-z0-9_.:/-]+\Z")]
Digest = Annotated[str, Meta(max_length=160, pattern=r"\A[a-z0-9-]{1,16}:[A-Za-z0-9+/=_-]{16,128}\Z")]
Address = Annotated[str, Meta(max_length=45, pattern=r"\A[0-9A-Fa-f:.]{2,45}\Z")]
Sha256 = Annotated[str, Meta(max_length=64, pattern=r"\A[0-9a-f]{64}\Z")]
SpoolName = Annotated[str, Meta(max_length=32, pattern=r"\A[0-9a-f]{32}\Z")]
ClaimText = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Mode = Literal["interactive", "subagent", "background", "api"]


class Resource(msgspec.Struct):
    """What the call is about."""

    type: TypeName
    id: Text


class Agent(msgspec.Struct):
    """The agents that the call went through, outermost first, and what they were handed."""

    mode: Mode = "interactive"
    chain: Annotated[list[Name], Meta(max_length=8)] = []
    scopes: Annotated[list[ScopeName], Meta(max_length=100)] | None = None


class RequestInfo(msgspec.Struct):
    """Ids by which the backend knows the call, and where it came from."""

    id: Text | None = None
    trace_id: Text | None = None
    session_id: Text | None = None
    ip: Address | None = None
    user_agent: LongText | None = None


class Dpop(msgspec.Struct):
    """The proof that came with the call (RFC 9449): the `DPoP` header, and the method and URL of the request that it
    was sent with. `request` is a name that the backend made for that one request: calls with the same name, proof and
    backend serve the same request, and all others use the proof a second time."""

    # Whatever a client sent is taken, so that it is on record as a proof that does not hold.
    proof: Annotated[str, Meta(max_length=8192, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
    method: Annotated[str, Meta(min_length=1, max_length=32, pattern=r"\A[\x21-\x7e]*\Z")]
    url: Annotated[str, Meta(min_length=1, max_length=2048, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
    request: Annotated[str, Meta(min_length=16, max_length=64, pattern=r"\A[A-Za-z0-9_-]*\Z")] | None = None


class ClientCertificate(msgspec.Struct, rename={"thumbprint": "x5t#S256"}):
    """The certificate with which the caller made its TLS connection (RFC 8705), by its SHA-256 in base64url."""

    thumbprint: Annotated[str, Meta(min_length=43, max_length=43, pattern=r"\A[A-Za-z0-9_-]{43}\Z")]


class Call(msgspec.Struct):
    """One call to verify."""

    token: str | None
    tool: ToolName
    tenant: Text | None = None
    resource: Resource | None = None
    agent: Agent = msgspec.field(default_factory=Agent)
    request: RequestInfo = msgspec.field(default_factory=RequestInfo)
    arguments_digest: Digest | None = None
    assertion: Text | None = None
    dpop: Dpop | None = None
    mtls: ClientCertificate | None = None


class Calls(msgspec.Struct):
    """A batch of calls, each decoded by itself, so that a wrong one does not spoil the others."""

    items: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=100)]


class Touched(msgspec.Struct):
    """A resource that an allowed call touched."""

    type: TypeName
    id: Text


class Outcome(msgspec.Struct):
    """What happened after an allow."""

    status: Literal["ok", "error"]
    resources: Annotated[list[Touched], Meta(max_length=100)] = []
    count: Annotated[int, Meta(ge=0, le=2**53 - 1)] | None = None
    duration_ms: Annotated[int, Meta(ge=0, le=2**53 - 1)] | None = None


class DeclaredTool(msgspec.Struct):
    """A tool as its backend declares it."""

    name: ToolName
    access: Literal["read", "write", "destructive"]
    scopes: Annotated[list[ScopeName], Meta(max_length=50)]
    description: Annotated[str, Meta(max_length=2000, pattern=r"\A[^\x00]*\Z")] = ""
    input_schema: dict | None = None


class Declaration(msgspec.Struct):
    """All tools of a backend."""

    tools: Annotated[list[DeclaredTool], Meta(max_length=200)]


class Report(msgspec.Struct):
    """Calls that ran without us: lines of a backend's spool, as they were written (`muniment.spool`)."""

    spool: SpoolName
    entries: Annotated[list[Annotated[str, Meta(min_length=2, max_length=16_384)]], Meta(min_length=1, max_length=100)]


class Claimed(msgspec.Struct):
    """Whom an unverified token said that it is of."""

    iss: ClaimText | None = None
    sub: ClaimText | None = None
    client_id: ClaimText | None = None


class SpoolLine(msgspec.Struct):
    """One line: a call that a backend let through. `at` is in microseconds since 1970, by the backend's clock."""

    spool: SpoolName
    sequence: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    previous: Sha256
    at: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    tool: ToolName
    cause: Annotated[str, Meta(max_length=32, pattern=r"\A[a-z0-9_]{1,32}\Z")]
    token: Sha256 | None = None
    claimed: Claimed | None = None
    request: RequestInfo = msgspec.field(default_factory=RequestInfo)
    agent: Annotated[list[Name], Meta(max_length=8)] = []
