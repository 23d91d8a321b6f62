"""Examples for the OpenAPI description, by operation: of the request, and of answers by status. They are of no real
installation; that each fits its type is tested."""

from typing import Any

RECORD = "019aa1b0-7f3c-7b5e-9d41-5c1f0a7e2b90"
DIGEST = "q1T9Yx0v3mJrB8c5bTt2uKc0oVQ8l0b8wH7mXyQ2n1E="
KEY = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
CALL = {
    "token": "eyJhbGciOi...",
    "tool": "memory.recall",
    "tenant": "acme",
    "resource": {"type": "memory", "id": "m_123"},
    "agent": {"mode": "interactive", "chain": ["planner", "reader"], "scopes": ["memory:read"]},
    "request": {"id": "req_81f2", "session_id": "ses_07", "ip": "203.0.113.7", "user_agent": "ExampleApp/1.0"},
    "arguments_digest": "sha256:47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU",
    "dpop": {
        "proof": "eyJ0eXAiOi...", "method": "POST", "url": "https://inner.example/mcp",
        "request": "Zk3vN0wq8RtYb2LmXc7AfA",
    },
    "mtls": {"x5t#S256": "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0"},
}  # fmt: skip
RECEIPT = {
    "index": 81198, "leaf": DIGEST, "signature": "MEQCIB3h...", "key": KEY,
    "batch": {
        "first": 81196, "size": 4, "previous": DIGEST, "root": DIGEST, "position": 2, "path": [DIGEST, DIGEST],
    },
}  # fmt: skip
ALLOW: dict[str, Any] = {
    "decision": "allow", "reason": "granted", "explanation": "Every check passed.", "flagged": False,
    "record": RECORD, "policy_version": 42,
    "subject": {
        "uid": "usr_7Qm2vTgXn4Ks0LbDx9", "issuer": "https://id.example/", "sub": "248289761001",
        "email": "alice@example.com", "tenant": "acme", "roles": [],
    },
    "client": {"slug": "claude", "name": "Claude"},
    "tool": {"name": "memory.recall", "access": "read"},
    "scopes": {
        "required": ["memory:read"], "token": ["memory:read"], "granted": ["memory:read"],
        "effective": ["memory:read"], "missing": [],
    },
    "receipt": RECEIPT, "status": 200,
}  # fmt: skip
DENY: dict[str, Any] = ALLOW | {
    "decision": "deny", "reason": "insufficient_scope",
    "explanation": "The user's token does not carry the scopes that the tool needs. Missing: memory:write.",
    "tool": {"name": "memory.capture", "access": "write"},
    "scopes": {
        "required": ["memory:write"], "token": ["memory:read"], "granted": [], "effective": [],
        "missing": ["memory:write"],
    },
    "status": 403, "remedy": "request_scope",
    "www_authenticate": 'Bearer error="insufficient_scope", scope="memory:write"',
}  # fmt: skip
LIMITED: dict[str, Any] = {name: value for name, value in DENY.items() if name != "www_authenticate"} | {
    "reason": "rate_limited",
    "explanation": "A limit lets no more calls through for now. Each user may call 60 times a minute.",
    "tool": ALLOW["tool"], "scopes": ALLOW["scopes"], "status": 429, "remedy": "retry_later", "retry_after": 23,
}  # fmt: skip
WRONG = {
    "type": "urn:muniment:problem:invalid-member", "title": "Invalid member", "status": 400,
    "detail": "tool: Expected `str`",
}  # fmt: skip
SEARCHED = {
    "id": RECORD, "index": 81198, "at": "2026-11-23T10:03:58.204117Z", "leaf": DIGEST,
    "statement": {"type": "decision", "decision": "allow", "reason": "granted", "tool": "memory.recall"},
}  # fmt: skip
ASKED: dict[str, Any] = {
    "subject": {"type": "user", "id": "248289761001"},
    "action": {"name": "tools/call"},
    "resource": {"type": "tool", "id": "memory.recall"},
    "context": {"agent": "claude-app"},
}
REASONED: dict[str, Any] = {
    "reason": "granted", "explanation": "Every check passed.", "flagged": False, "record": RECORD,
    "policy_version": 42,
}  # fmt: skip
NOT_GRANTED: dict[str, Any] = {
    "decision": False,
    "context": REASONED | {
        "reason": "not_granted", "remedy": "ask_administrator",
        "explanation": "No grant lets this client use the scopes that the tool needs. Missing: memory:write.",
    },
}  # fmt: skip
RECORDED = {"record": RECORD, "policy_version": 42}
EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    "verify": {
        "request": {"The least": {"token": "eyJhbGciOi...", "tool": "memory.recall"}, "Everything": CALL},
        "200": {"Allowed": ALLOW, "Denied": DENY, "Called too often": LIMITED},
        "400": {"A wrong member": WRONG},
    },
    "verify_batch": {
        "request": {"Two calls": {"items": [{"token": "eyJhbGciOi...", "tool": "memory.recall"}, CALL]}},
        "200": {"One allowed, one that is not valid": {"items": [ALLOW, WRONG]}},
    },
    "evaluation": {
        "request": {"May this user call this tool, through this client?": ASKED},
        "200": {"Yes": {"decision": True, "context": REASONED}, "No": NOT_GRANTED},
    },
    "evaluations": {
        "request": {
            "Two tools": {
                "subject": ASKED["subject"], "action": ASKED["action"], "context": ASKED["context"],
                "evaluations": [
                    {"resource": {"type": "tool", "id": "memory.recall"}},
                    {"resource": {"type": "tool", "id": "memory.capture"}},
                ],
            },
        },
        "200": {
            "One yes, one no": {"evaluations": [{"decision": True, "context": REASONED}, NOT_GRANTED]},
        },
    },
    "search_subject": {
        "request": {"Who may call it?": ASKED | {"subject": {"type": "user"}, "page": {"limit": 50}}},
        "200": {
            "A user, and no more": {
                "page": {"next_token": "", "count": 1}, "context": RECORDED,
                "results": [{"type": "user", "id": "usr_7Qm2vTgXn4Ks0LbDx9"}],
            },
        },
    },
    "search_resource": {
        "request": {"Which tools may the user call?": ASKED | {"resource": {"type": "tool"}}},
        "200": {
            "One tool": {
                "page": {"next_token": "", "count": 1}, "context": RECORDED,
                "results": [{"type": "tool", "id": "memory.recall"}],
            },
        },
    },
    "search_action": {
        "request": {
            "What may the user do with a memory?": {
                "subject": ASKED["subject"], "resource": {"type": "memory", "id": "m_123"},
            },
        },
        "200": {
            "Recall it": {
                "page": {"next_token": "", "count": 1}, "context": RECORDED, "results": [{"name": "recall"}],
            },
        },
    },
    "forward_auth": {
        "403": {
            "A path without a route": {
                "type": "urn:muniment:problem:no-route", "title": "No route", "status": 403,
                "detail": "No tool is served at this path with this method.",
            },
        },
    },
    "report_outcome": {
        "request": {
            "It went well": {
                "status": "ok", "resources": [{"type": "memory", "id": "m_123"}], "count": 1, "duration_ms": 42,
            },
        },
        "201": {"Recorded": {"record": "019aa1b0-8a02-7c11-8f6e-0b9a4d2c7e55", "parent": RECORD, "first": True}},
    },
    "declare_tools": {
        "request": {
            "Two tools": {
                "tools": [
                    {"name": "memory.recall", "access": "read", "scopes": ["memory:read"],
                     "description": "Finds memories of the user.",
                     "input_schema": {"type": "object", "properties": {"about": {"type": "string"}}}},
                    {"name": "memory.capture", "access": "write", "scopes": ["memory:write"]},
                ],
            },
        },
        "200": {
            "A new one waits for approval": {
                "tools": [
                    {"name": "memory.recall", "status": "active", "change": "unchanged"},
                    {"name": "memory.capture", "status": "pending", "change": "created"},
                ],
            },
        },
    },
    "search_records": {
        "200": {
            "A page": {
                "items": [SEARCHED], "since": "2026-11-16T10:04:00Z", "until": "2026-11-23T10:04:00Z",
                "reached": None, "next": None, "previous": None,
            },
        },
    },
    "read_record": {"200": {"A decision": SEARCHED | {"outcome": "019aa1b0-8a02-7c11-8f6e-0b9a4d2c7e55"}}},
}  # fmt: skip
