"""The OpenAPI 3.1 description of bodies that DRF does not know, made from the types that check them."""

from collections.abc import Callable
from typing import Any

import msgspec
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema

from governance import authzen_contract, contract

TYPES = (contract.Call, contract.Outcome, contract.Declaration, contract.Report, *authzen_contract.TYPES)
View = Callable[..., Any]
PROXY: list[Any] = [{"proxyKey": []}]
PUBLIC: list[Any] = [{}]  # no key is needed, against what holds for all others
STAFF: list[Any] = [{"staffKey": []}]
_, COMPONENTS = msgspec.json.schema_components(TYPES, ref_template="#/components/schemas/{name}")

_text = {"type": "string"}
_nullable = {"type": ["string", "null"]}
_texts = {"type": "array", "items": _text}
_count = {"type": "integer", "minimum": 0}
_batch = {
    "first": _count,
    "size": _count,
    "previous": _text,
    "root": _text,
    "position": _count,
    "path": _texts,
}
RECEIPT = {
    "index": _count, "leaf": _text, "signature": _text, "key": _text, "batch": {"type": "object", "properties": _batch},
}  # fmt: skip
SUBJECT = {
    "uid": _text,
    "issuer": _text,
    "sub": _text,
    "email": _nullable,
    "tenant": _nullable,
    "roles": _texts,
}
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": [
        "decision",
        "reason",
        "explanation",
        "flagged",
        "record",
        "policy_version",
        "receipt",
        "status",
    ],
    "properties": {
        "decision": {"enum": ["allow", "deny"]},
        "reason": _text,
        "explanation": _text,
        "flagged": {"type": "boolean"},
        "record": {"type": "string", "format": "uuid"},
        "policy_version": _count,
        "subject": {"type": ["object", "null"], "properties": SUBJECT},
        "client": {"type": ["object", "null"], "properties": {"slug": _text, "name": _text}},
        "tool": {"type": ["object", "null"], "properties": {"name": _text, "access": _text}},
        "scopes": {
            "type": "object",
            "properties": dict.fromkeys(("required", "token", "granted", "effective", "missing"), _texts),
        },
        "receipt": {"type": "object", "properties": RECEIPT},
        "status": {"enum": [200, 401, 403, 429, 503]},
        "remedy": {"enum": ["reauthenticate", "request_scope", "ask_administrator", "retry_later", "none"]},
        "www_authenticate": _text,
        "retry_after": _count,
        "dpop_nonce": _text,
        "assertion": _text,
        "tlog_proof": _nullable,
    },
}
PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {"type": _text, "title": _text, "status": _count, "detail": _text},
}
RECORD: dict[str, Any] = {
    "type": "object",
    "required": ["id", "index", "at", "leaf", "statement"],
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "index": _count,
        "at": {"type": "string", "format": "date-time"},
        "leaf": _text,
        "statement": {"type": ["object", "null"], "description": "What was hashed; null where it is no JSON any more."},
    },
}
COMPONENTS = COMPONENTS | {"Answer": ANSWER, "Problem": PROBLEM, "Record": RECORD}


def ref(name: str) -> dict[str, str]:
    """A reference to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def add_components(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """drf-spectacular's postprocessing hook: put our types beside its own."""
    result["components"] = {
        "schemas": COMPONENTS,
        "securitySchemes": {
            name: {"type": "http", "scheme": "bearer", "bearerFormat": f"{prefix}_<key id>_<secret>"}
            for name, prefix in (("backendKey", "mk"), ("staffKey", "sk"))
        }
        | {"pushToken": {"type": "http", "scheme": "bearer", "bearerFormat": "ss_<secret>"}}
        | {"proxyKey": {"type": "apiKey", "in": "header", "name": "X-Muniment-Key"}},
    }
    result["security"] = [{"backendKey": []}]
    _add_older_logs(result["paths"])
    return result


def _add_older_logs(paths: dict[str, Any]) -> None:
    """What is public of the current log is there of each log, below its number."""
    number = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}
    for path in ("checkpoint", "tile/{tile}", "proof/consistency"):
        get = paths[f"/v1/log/{path}"]["get"]
        older = get | {"operationId": f"{get['operationId']}_of", "parameters": [number, *get.get("parameters", [])]}
        paths[f"/v1/log/{{number}}/{path}"] = {"get": older}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _responses(success: dict[int, Any], *errors: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {(status, "application/json"): body for status, body in success.items()}
    for status in errors:
        found[(status, "application/problem+json")] = OpenApiResponse(ref("Problem"))
    return found


_idempotency = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="A retry with the same body gets the first answer.",
)
_wait = OpenApiParameter(
    "wait",
    str,
    enum=["sealed"],
    description="Wait, up to 5 s, until the record is sealed: the answer then has `tlog_proof`, which is null when it"
    " took longer. Nothing else of the answer changes.",
)


def verify(view: View) -> View:
    """POST /v1/verify."""
    return extend_schema(
        operation_id="verify",
        request={"application/json": ref("Call")},
        parameters=[_idempotency, _wait],
        responses=_responses({200: ref("Answer")}, 400, 401, 409, 413, 422, 429, 503),
    )(view)


def verify_batch(view: View) -> View:
    """POST /v1/verify/batch."""
    items = {"type": "array", "minItems": 1, "maxItems": 100, "items": ref("Call")}
    answers = {"type": "array", "items": {"oneOf": [ref("Answer"), ref("Problem")]}}
    return extend_schema(
        operation_id="verify_batch",
        request={"application/json": _object(items=items)},
        responses=_responses({200: _object(items=answers)}, 400, 401, 413, 429, 503),
    )(view)


def introspect(view: View) -> View:
    """POST /v1/introspect."""
    asked = dict.fromkeys(("token", "token_type_hint", "client_id", "client_secret"), _text)
    proof = {name: _text | {"description": words} for name, words in _PROOF.items()}
    form = _object(**asked, **proof)
    names = dict.fromkeys(("scope", "client_id", "token_type", "sub", "aud", "iss", "jti", "uid"), _text)
    said = {name: _text | {"description": words} for name, words in _PROVED.items()}
    chain = {"type": "object"}
    found = _object(
        active={"type": "boolean"}, **names, exp=_count, iat=_count, act=chain, cnf=_object(**_BOUND), **said
    )
    return extend_schema(
        operation_id="introspect",
        tags=["verify"],
        request={"application/x-www-form-urlencoded": form | {"required": ["token"]}},
        responses=_responses({200: found | {"required": ["active"]}}, 400, 401, 413, 429, 503),
    )(view)


def outcome(view: View) -> View:
    """POST /v1/records/{record}/outcome."""
    body = _object(record=_text, parent=_text, first={"type": "boolean"})
    return extend_schema(
        operation_id="report_outcome",
        request={"application/json": ref("Outcome")},
        responses=_responses({200: body, 201: body}, 400, 401, 404, 409, 413, 429, 503),
    )(view)


def ungoverned(view: View) -> View:
    """POST /v1/ungoverned."""
    return extend_schema(
        operation_id="report_ungoverned",
        tags=["records"],
        request={"application/json": ref("Report")},
        responses=_responses({200: _object(spool=_text, taken=_count, recorded=_count)}, 400, 401, 409, 413, 429, 503),
    )(view)


def declare(view: View) -> View:
    """PUT /v1/tools."""
    row = _object(name=_text, status=_text, change={"enum": ["created", "changed", "unchanged"]})
    return extend_schema(
        operation_id="declare_tools",
        request={"application/json": ref("Declaration")},
        responses=_responses({200: _object(tools={"type": "array", "items": row})}, 400, 401, 413, 429, 503),
    )(view)


def forward_auth(view: View) -> View:
    """GET /v1/forward-auth, and below it."""
    headers = [
        OpenApiParameter(name, str, OpenApiParameter.HEADER, description=words, required=name in _ASKED)
        for name, words in {**_ASKED, **_PASSED_ON}.items()
    ]
    allowed = OpenApiResponse(None, "Every tool of the route is allowed; the headers say who it is.")
    told = [
        OpenApiParameter(f"X-Muniment-{name}", str, OpenApiParameter.HEADER, response=True, description=words)
        for name, words in _IDENTITY.items()
    ]
    nonce = OpenApiParameter(
        "DPoP-Nonce", str, OpenApiParameter.HEADER, response=True, description="For the client, as the header it is."
    )
    return extend_schema(
        operation_id="forward_auth",
        tags=["forward-auth"],
        auth=PROXY,
        parameters=[*headers, *told, nonce],
        responses={200: allowed} | _responses({}, 401, 403, 429, 503),
    )(view)


def keys(view: View) -> View:
    """GET /v1/keys."""
    key = _object(
        kty=_text, crv=_text, x=_text, kid=_text, use=_text, vkey=_text, not_before=_text, not_after=_nullable
    )
    use = OpenApiParameter(
        "use",
        str,
        enum=["assertion"],
        description="With `assertion`: the keys that sign identity assertions now, each with `use` `sig`, as JOSE"
        " libraries expect it, and without `vkey`, `not_before` and `not_after`.",
    )
    return extend_schema(
        operation_id="keys",
        auth=PUBLIC,
        parameters=[use],
        responses=_responses({200: _object(keys={"type": "array", "items": key})}, 400),
    )(view)


def log_checkpoint(view: View) -> View:
    """GET /v1/log/checkpoint."""
    note = OpenApiResponse(_text, "A signed note (C2SP tlog-checkpoint), with cosignatures.")
    return extend_schema(
        operation_id="log_checkpoint", auth=PUBLIC, responses={(200, "text/plain"): note} | _responses({}, 404, 503)
    )(view)


def log_tile(view: View) -> View:
    """GET /v1/log/tile/{tile}."""
    tile = OpenApiParameter(
        "tile", str, OpenApiParameter.PATH,
        description="Level, index and, for a partial tile, width, as C2SP tlog-tiles writes them: `0/x001/234.p/17`.",
    )  # fmt: skip
    hashes = OpenApiResponse({"type": "string", "format": "binary"}, "1 to 256 hashes of 32 bytes.")
    return extend_schema(
        operation_id="log_tile",
        auth=PUBLIC,
        parameters=[tile],
        responses={(200, "application/octet-stream"): hashes} | _responses({}, 404, 503),
    )(view)


def log_consistency(view: View) -> View:
    """GET /v1/log/proof/consistency."""
    sizes = [OpenApiParameter(name, {"type": "integer", "minimum": 1}, required=True) for name in ("from", "to")]
    body = _object(log=_count, **{"from": _count}, to=_count, path=_texts)
    return extend_schema(
        operation_id="log_consistency",
        auth=PUBLIC,
        parameters=sizes,
        responses=_responses({200: body}, 400, 404, 503),
    )(view)


def log_inclusion(view: View) -> View:
    """GET /v1/log/proof/inclusion."""
    record = OpenApiParameter("record", {"type": "string", "format": "uuid"}, required=True)
    counts = dict.fromkeys(("index", "log", "leaf_index", "size"), _count)
    body = _object(record=_text, **counts, leaf=_text, path=_texts, checkpoint=_text, tlog_proof=_text)
    return extend_schema(
        operation_id="log_inclusion",
        parameters=[record],
        responses=_responses({200: body}, 400, 401, 404, 429, 503),
    )(view)


def records(view: View) -> View:
    """GET /v1/records."""
    search = [OpenApiParameter(name, schema, description=words) for name, schema, words in _SEARCH]
    items = {"type": "array", "items": ref("Record")}
    body = _object(items=items, since=_text, until=_text, reached=_nullable, next=_nullable, previous=_nullable)
    return extend_schema(
        operation_id="search_records",
        auth=STAFF,
        parameters=search,
        responses=_responses({200: body}, 400, 401, 403, 429, 503),
    )(view)


def record(view: View) -> View:
    """GET /v1/records/{record}."""
    outcome = {"type": ["string", "null"], "format": "uuid", "description": "The record of its outcome."}
    return extend_schema(
        operation_id="read_record",
        auth=STAFF,
        responses=_responses({200: {"allOf": [ref("Record"), _object(outcome=outcome)]}}, 401, 403, 404, 429, 503),
    )(view)


# Of a token that is bound to a key or a certificate; in an answer, what its client needs to know of its proof.
_PROOF = {
    "dpop_proof": "The `DPoP` header that came with the token (RFC 9449). Without it a bound token is not active.",
    "dpop_method": "The method of the request that it came with.",
    "dpop_url": "The URL of that request, as clients know the backend.",
    "dpop_request": "A random name that the backend makes for that request: with the same one a proof is used once.",
    "x5t#S256": "The SHA-256 of the client's certificate in base64url (RFC 8705).",
}
_BOUND = {"jkt": _text, "x5t#S256": _text}
_PROVED = {
    "dpop_error": "Where a proof does not hold: the error for the challenge of the scheme `DPoP`.",
    "dpop_nonce": "For the header `DPoP-Nonce` of the backend's own answer.",
}
_ASKED = {
    "X-Muniment-Proxy": "`nginx`, `caddy`, `traefik` or `envoy`: it says where the original request stands."
    " `nginx; assertion=https://db.example` asks for an identity assertion as well; `nginx; certificate=...` says which"
    " certificate the client showed.",
}
_PASSED_ON = {
    "X-Original-Method": "The original method, from nginx.",
    "X-Original-URI": "The original path and query, from nginx and Envoy.",
    "X-Forwarded-Method": "The original method, from Caddy and Traefik.",
    "X-Forwarded-Uri": "The original path and query, from Caddy and Traefik.",
    "Mcp-Protocol-Version": "Of the client, with the next two: of a backend that enforces them, the tool it calls.",
    "Mcp-Method": "Of the client.",
    "Mcp-Name": "Of the client.",
    "DPoP": "Of the client, where its token is bound to a key.",
    "X-Real-IP": "The client's address, for the record.",
}
_IDENTITY = {
    "Status": "The status that is meant, where the proxy understands fewer.",
    "Uid": "By which Muniment knows the user.",
    "Client": "The AI client's slug.",
    "Tool": "The tool; of several, all of them with spaces between.",
    "Scopes": "With which the request may be served, with spaces between.",
    "Record": "The record of the decision; of several, in the order of the tools.",
    "Tenant": "The user's tenant, percent-encoded.",
    "Assertion": "The signed JWT that was asked for, where one tool was.",
}
_moment = {"type": "string", "format": "date-time"}
_hash = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
# The parameters of a search; that they are those that `governance.records_api` takes is tested.
_SEARCH: list[tuple[str, dict[str, Any], str]] = [
    ("window", {"enum": ["1h", "24h", "7d", "30d", "1y"], "default": "7d"}, "The time up to now."),
    ("since", _moment, "Instead of `window`: from then on."),
    ("until", _moment, "Up to, and without, then; with `since` only."),
    ("type", _text, "The type of a record, such as `decision`."),
    ("decision", {"enum": ["allow", "deny"]}, "What was decided."),
    ("reason", _text, "A reason code."),
    ("client", _text, "A client's slug."),
    ("tool", _text, "A tool's name."),
    ("backend", _text, "A backend's slug."),
    ("scope", _text, "A scope that the call needed."),
    ("tenant", _text, "A tenant."),
    ("mode", {"enum": ["interactive", "subagent", "background", "api"]}, "The agent mode of a call."),
    ("flagged", {"enum": ["true", "false"]}, "Whether it is marked for review."),
    ("subject", {"type": "string", "pattern": "^usr_"}, "A user's uid; never an e-mail address or a `sub`."),
    ("request_id", _text, "The id of a request, as the backend sent it."),
    ("trace_id", _text, "The id of a trace, as the backend sent it."),
    ("session_key", _hash, "The keyed hash of a session's id, from the URL of the same search in the admin."),
    ("resource_key", _hash, "The keyed hash of a resource, from the URL of the same search in the admin."),
    ("limit", {"type": "integer", "minimum": 1, "maximum": 50, "default": 50}, "Records in a page."),
    ("cursor", _text, "Where a page begins: take `next` or `previous` as they are."),
]
