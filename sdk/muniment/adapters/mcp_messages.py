"""What a POST to an MCP server says, read before the server reads it: which tool it calls, and through which agents.

What two readers might understand in two ways is refused: then nothing was asked of the platform, and nothing ran.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, cast

from mcp.shared.inbound import MCP_METHOD_HEADER, MCP_NAME_HEADER, NAME_BEARING_METHODS, decode_header_value
from mcp_types.jsonrpc import HEADER_MISMATCH, INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR

from muniment.adapters.http import Answer
from muniment.calls import Agent, Mode
from muniment.tools import TOOL_NAME

CALL: Final = "tools/call"
META_AGENT: Final = "muniment/agent"  # in a call's _meta: the agents that it went through


@dataclass(frozen=True, slots=True)
class Message:
    """One JSON-RPC message. `method` is None in an answer of the client; `id` is None in what is no request. `name` is
    the tool, prompt or resource that it is about. For a tools/call there is always an id and a name."""

    method: str | None
    id: str | int | None
    name: str | None = field(default=None, repr=False)
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)
    agent: Agent = field(default_factory=Agent)

    @property
    def is_call(self) -> bool:
        """Whether it calls a tool."""
        return self.method == CALL


class Bad(Exception):
    """A body that is not to be passed on; `code` is the JSON-RPC error, the text says what is wrong with it."""

    def __init__(self, words: str, code: int = INVALID_REQUEST, id: str | int | None = None) -> None:
        super().__init__(words)
        self.code, self.id = code, id

    @property
    def answer(self) -> Answer:
        """JSON-RPC 2.0 section 5.1, with the status that MCP asks for."""
        body = {"jsonrpc": "2.0", "id": self.id, "error": {"code": self.code, "message": str(self)}}
        return Answer(400, {"Content-Type": "application/json", "Cache-Control": "no-store"}, json.dumps(body).encode())


def message_of(body: bytes) -> Message:
    """The message of a body. Raises Bad for what is none, for a name that occurs twice in an object, and for a batch
    (MCP has none since 2025-06-18, and the server would refuse it)."""
    try:
        found = json.loads(body, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise Bad("The body is not JSON, or has a name twice.", PARSE_ERROR) from None
    if not isinstance(found, dict):
        raise Bad("The body is one JSON-RPC message.")
    method, id = found.get("method"), found.get("id")
    if isinstance(id, bool) or not isinstance(id, str | int | None) or not isinstance(method, str | None):
        raise Bad("The body is one JSON-RPC message.")
    params = found.get("params")
    params = params if isinstance(params, dict) else {}
    if method == CALL:
        return _call(id, params)
    name = params.get(NAME_BEARING_METHODS.get(method or "", ""))
    return Message(method, id, name if isinstance(name, str) else None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names occur once (RFC 8259 section 4 leaves open what more of them mean)."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError
    return made


def _call(id: str | int | None, params: dict[str, Any]) -> Message:
    name, arguments = params.get("name"), params.get("arguments")
    if id is None:
        raise Bad("A tools/call is a request, with an id.")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise Bad("A tool's name has letters, digits and _ . / : - only, at most 128.", INVALID_PARAMS, id)
    if not isinstance(arguments, dict | None):
        raise Bad("The arguments of a tool are an object.", INVALID_PARAMS, id)
    return Message(CALL, id, name, arguments or {}, agent_of(params.get("_meta"), id))


def agent_of(meta: Any, id: str | int | None = None) -> Agent:
    """The agents that a call's `_meta` names: claims of the client, which only narrow. Raises Bad."""
    said = meta.get(META_AGENT) if isinstance(meta, dict) else None
    if said is None:
        return Agent()
    if isinstance(said, dict) and said.keys() <= {"chain", "scopes", "mode"}:
        chain, scopes, mode = said.get("chain", []), said.get("scopes"), said.get("mode", "subagent")
        if _texts(chain) and (scopes is None or _texts(scopes)) and isinstance(mode, str):
            with suppress(ValueError):
                return Agent(cast(Mode, mode), tuple(chain), None if scopes is None else tuple(scopes))
    raise Bad(f"_meta[{META_AGENT!r}] has a chain of names, and may have scopes and a mode.", INVALID_PARAMS, id)


def joined(agent: Agent, claimed: Agent, id: str | int | None = None) -> Agent:
    """The agents that the backend itself says a request came through, and then those of a call's `_meta`. Raises
    Bad where these are too many together."""
    try:
        return agent.joined(claimed)
    except ValueError:
        raise Bad("The call went through too many agents.", INVALID_PARAMS, id) from None


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def agree(message: Message, methods: Sequence[str], names: Sequence[str]) -> None:
    """That the headers `Mcp-Method` and `Mcp-Name`, where a request has them, are those of its body, whatever its
    protocol version: a proxy in front may have decided by them. Raises Bad."""
    if len(methods) > 1 or len(names) > 1:
        raise Bad("Mcp-Method and Mcp-Name occur once.", HEADER_MISMATCH, message.id)
    if methods and methods[0] != message.method:
        raise Bad("Mcp-Method is not the method of the body.", HEADER_MISMATCH, message.id)
    if names and (message.name is None or decode_header_value(names[0]) != message.name):
        raise Bad("Mcp-Name is not the name in the body.", HEADER_MISMATCH, message.id)


HEADERS: Final = (MCP_METHOD_HEADER.encode(), MCP_NAME_HEADER.encode())
