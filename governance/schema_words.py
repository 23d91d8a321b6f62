"""What the OpenAPI description says in words: of each operation, of each member, and an example of each body. The page
at /reference shows them; `tests/governance/test_reference.py` holds them to what the platform takes and answers."""

from typing import Any

from governance.schema_examples import EXAMPLES

TAGS = {
    "verify": "Ask before a tool is served: may this user, through this client, use it? Every answer is on record.",
    "authzen": "Ask without a token, as OpenID AuthZEN Authorization API 1.0 has it. Users are named, not verified.",
    "forward-auth": "For a proxy that asks before it lets a request through: nginx, Caddy, Traefik, Envoy. Which tools"
    " a path stands for is in the policy, as routes of the backend.",
    "tools": "Say which tools a backend offers. New and changed ones wait for staff.",
    "signals": "For identity providers: whose sessions ended. Tokens from before are refused from the next call on.",
    "records": "What is on record: search it with a staff key, and report what came of a call that was allowed.",
    "log": "The Merkle tree over all records, for everybody who wants to check it (C2SP tlog-tiles, RFC 9162).",
    "keys": "The public keys with which everything that is signed here can be checked.",
}
SUMMARIES = {
    "verify": "Verify one call",
    "verify_batch": "Verify up to 100 calls",
    "introspect": "Look at a token (RFC 7662)",
    "report_outcome": "Report what came of an allowed call",
    "report_ungoverned": "Report calls that ran without Muniment",
    "declare_tools": "Declare a backend's tools",
    "forward_auth": "Ask for a proxy, before it lets a request through",
    "evaluation": "Ask whether a user may do something",
    "evaluations": "Ask up to 100 such questions",
    "search_subject": "Search the users who may do something",
    "search_resource": "Search what a user may use",
    "search_action": "Search what a user may do",
    "authzen_configuration": "Where the AuthZEN endpoints are",
    "push_event": "Push a security event (RFC 8935)",
    "logout": "Log a user out (OpenID Connect Back-Channel Logout)",
    "search_records": "Search the records",
    "read_record": "Read one record",
    "keys": "The public keys",
    "log_checkpoint": "The newest checkpoint",
    "log_tile": "A tile of the tree",
    "log_consistency": "Prove that the log only grew",
    "log_inclusion": "Prove that a record is in the log",
    "log_checkpoint_of": "The newest checkpoint of an older log",
    "log_tile_of": "A tile of an older log",
    "log_consistency_of": "Prove that an older log only grew",
}
KEYS = {
    "backendKey": "A backend's key, made by staff under Backend keys, or by `manage.py backend_key create`.",
    "proxyKey": "A key of the backend that is behind the proxy, in a header of its own: `Authorization` is the user's.",
    "pushToken": "The token of a stream of security events, made by staff under Signal streams.",
    "staffKey": "A key of a member of staff, with that person's roles, made by `manage.py staff_key create`.",
}
# Members of the types, by path; what a name says by itself has no words.
MEMBERS: dict[str, dict[str, str]] = {
    "Call": {
        "token": "The user's own access token, without `Bearer `; null is a denial that is recorded.",
        "tool": "The tool's name, as the backend declared it.",
        "tenant": "The tenant whose data the call is about; it must be the token's.",
        "resource": "What the call is about. Protected in the record, and found again by exact search.",
        "agent": "Who made the call on the user's behalf.",
        "request": "Ids by which the backend knows the call. Protected in the record.",
        "arguments_digest": "A digest of the arguments, such as `sha256:...`: never the arguments themselves.",
        "assertion": "An audience that is registered for the backend: an allow then carries a signed JWT for it.",
        "dpop": "The DPoP proof that the request came with (RFC 9449); without one a token that is bound to a key is"
        " refused.",
        "mtls": "The certificate of the client's TLS connection (RFC 8705), where there is one.",
    },
    "Dpop": {
        "proof": "The `DPoP` header as it came.",
        "method": "The method of the request that it came with.",
        "url": "The URL of that request, as clients know the backend, whatever proxies made of it.",
        "request": "A random name that the backend makes for each request that it serves, never one that a client sent:"
        " calls with the same name may use the same proof. Without it each call is a request of its own.",
    },
    "ClientCertificate": {"x5t#S256": "Its SHA-256 in base64url."},
    "Agent": {
        "mode": "How the agent runs.",
        "chain": "The agents that the call went through, outermost first; joined with the token's `act` chain.",
        "scopes": "What the agent was handed: it narrows what the user and staff allow, and never widens it.",
    },
    "RequestInfo": {"ip": "The user's address, as the backend sees it.", "id": "The request's id."},
    "Resource": {"type": "What kind of thing it is.", "id": "Its id at the backend."},
    "Touched": {"type": "What kind of thing it is.", "id": "Its id at the backend."},
    "Outcome": {
        "status": "How the call ended.",
        "resources": "What it touched.",
        "count": "How many things it touched, where that is more than are listed.",
        "duration_ms": "How long it took, in milliseconds.",
    },
    "Declaration": {"tools": "Every tool of the backend; one that is left out stays as it is."},
    "DeclaredTool": {
        "name": "What clients call it.",
        "access": "What it does to data.",
        "scopes": "The scopes that a call needs, all of them.",
        "description": "What it does, for staff who approve it.",
        "input_schema": "Its arguments, as JSON Schema.",
    },
    "Evaluation": {
        "subject": "The user who is asked about.",
        "action": "`tools/call` for a tool; else it is the tool `<resource.type>.<action.name>`.",
        "resource": "The tool, or what is used with it.",
        "context": "Through what the user asks.",
    },
    "Evaluations": {
        "evaluations": "Each as an Evaluation. Left out or empty, the whole is one.",
        "subject": "For each item that names none; so are the three others.",
    },
    "Options": {"evaluations_semantic": "Whether all are answered, or those up to the first denial, or permit."},
    "AskedSubject": {
        "type": "`user` or `identity`.",
        "id": "The user's uid (`usr_...`), else what the issuer calls the user (`sub`).",
    },
    "SubjectProperties": {
        "issuer": "Whose `sub` it is; may be left out where the backend accepts one issuer.",
        "iss": "The same.",
        "role": "Roles, one or several.",
        "roles": "The same.",
        "iat": "When the user's token was issued, in POSIX seconds. A user who was signed out everywhere is refused"
        " without it.",
    },
    "AskedContext": {
        "agent": "The OAuth client id. Without it those grants count that are for any client.",
        "agent_mode": "How the agent runs.",
        "agent_scopes": "What the agent was handed: it narrows, and never widens.",
        "scopes": "The scopes of the user's token. Without them consent is not looked at.",
    },
    "PageWish": {
        "token": "`next_token` of the page before, with the same question.",
        "limit": "Results of a page: 50 if left out, at most 100.",
    },
    "Answer": {
        "decision": "Whether the tool may be served.",
        "reason": "A reason code; what each means is under Why calls are refused, in the admin.",
        "explanation": "The reason in a sentence, with what is missing.",
        "flagged": "Whether an allow is marked for review.",
        "record": "The record of this decision; the outcome is reported to it.",
        "policy_version": "The version of the policy that decided.",
        "subject": "The verified user; null where none was established.",
        "subject.uid": "By which Muniment knows the user, everywhere.",
        "subject.sub": "By which the issuer knows the user.",
        "client": "The AI client; null where none was established.",
        "tool": "The tool; null where the backend has none of this name.",
        "scopes": "What the decision was about.",
        "scopes.required": "That the tool needs.",
        "scopes.token": "That the user consented to.",
        "scopes.granted": "That staff granted.",
        "scopes.effective": "With which the call may be served.",
        "scopes.missing": "For want of which it is denied.",
        "receipt": "Proof that the decision is on record, to be kept by the backend.",
        "receipt.index": "Where in the log it is; advisory.",
        "receipt.leaf": "SHA-256 of the statement (RFC 9162 section 2.1), base64.",
        "receipt.signature": "Over the batch, by the writer's key (Ed25519), base64.",
        "receipt.key": "The writer's key, among those at `/v1/keys`.",
        "receipt.batch": "The records that were written with it.",
        "receipt.batch.path": "From the leaf to the batch's root.",
        "status": "What the backend answers to its own caller.",
        "remedy": "What would help, of a denial.",
        "www_authenticate": "The header for a 401 or 403 (RFC 6750, 9449, 9728), where signing in again could help.",
        "retry_after": "Seconds until it is worth trying again.",
        "dpop_nonce": "For the header `DPoP-Nonce` of the backend's own answer, where the token's issuer demands nonces"
        " (RFC 9449 section 8).",
        "assertion": "The signed JWT that was asked for; at most 60 s old.",
        "tlog_proof": "With `?wait=sealed`: proof that the record is in the log (C2SP tlog-proof); null if it took"
        " longer than 5 s.",
    },
    "Problem": {
        "type": "Names the problem: `urn:muniment:problem:...`.",
        "status": "The HTTP status.",
        "detail": "What to do about it.",
    },
    "Record": {
        "index": "Where in the log it is.",
        "at": "When it was recorded.",
        "leaf": "SHA-256 of the statement (RFC 9162 section 2.1), base64.",
    },
}  # fmt: skip


def add_words(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """drf-spectacular's postprocessing hook, after the one that adds the types."""
    result["tags"] = [{"name": name, "description": words} for name, words in TAGS.items()]
    schemas: dict[str, Any] = result["components"]["schemas"]
    result["components"]["schemas"] = {name: _described(schemas[name], MEMBERS.get(name, {})) for name in schemas}
    for name, words in KEYS.items():
        if name in result["components"]["securitySchemes"]:
            result["components"]["securitySchemes"][name]["description"] = words
    for operations in result["paths"].values():
        for operation in operations.values():
            operation["summary"] = SUMMARIES.get(operation["operationId"], operation["operationId"])
            _add_examples(operation)
    return result


def _described(schema: dict[str, Any], words: dict[str, str], prefix: str = "") -> dict[str, Any]:
    """A copy whose properties have their words; a path's parts are joined by points."""
    if "properties" not in schema:
        return schema
    properties = {}
    for name, found in schema["properties"].items():
        one = _described(found, words, f"{prefix}{name}.")
        properties[name] = one | ({"description": words[prefix + name]} if prefix + name in words else {})
    return schema | {"properties": properties}


def _add_examples(operation: dict[str, Any]) -> None:
    """Put the examples of an operation beside its bodies, by media type."""
    found = EXAMPLES.get(operation["operationId"], {})
    if "request" in found and "requestBody" in operation:
        operation["requestBody"]["content"]["application/json"]["examples"] = _named(found["request"])
    for status, examples in found.items():
        if status in operation["responses"]:
            for media in operation["responses"][status]["content"].values():
                media["examples"] = _named(examples)


def _named(examples: dict[str, Any]) -> dict[str, Any]:
    return {name: {"summary": name, "value": value} for name, value in examples.items()}
