"""A backend declares its tools: new ones wait for approval, and a change of what a tool may do or needs suspends
it until staff approve it again, so that a backend key cannot loosen what staff decided."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from audit.outbox import acting
from muniment import statements
from tools.models import Backend, Scope, Tool


class Declared(Protocol):
    """What is declared of one tool."""

    name: str
    access: str
    scopes: list[str]
    description: str
    input_schema: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Result:
    """What a declaration did to one tool: `change` is created, changed or unchanged."""

    name: str
    status: str
    change: str


MAX_TOOLS = 1_000  # of one backend, retired ones included
MAX_PAIRS = 2_000  # of tool and scope in one declaration
MAX_SCOPES = 10_000  # in all


class DeclarationError(ValueError):
    """The declaration contradicts itself; the message names what is wrong."""


def definition(tool: Declared) -> str:
    """SHA-256, in hex, of the canonical JSON of what is declared. Raises DeclarationError where a schema holds
    what canonical JSON cannot."""
    content: dict[str, Any] = {
        "name": tool.name,
        "access": tool.access,
        "scopes": sorted(set(tool.scopes)),
        "description": tool.description,
    }
    try:
        schema = None if tool.input_schema is None else _canonical(tool.input_schema)
        statements.check(content)
    except (ValueError, RecursionError):
        raise DeclarationError(f"{tool.name}: its definition is not plain JSON") from None
    return sha256(statements.dump(content | {"input_schema": schema})).hexdigest()


def _canonical(schema: dict[str, Any]) -> str:
    """The schema's own digest; schemas may hold floats, which statements do not, so it is hashed by itself."""
    text = json.dumps(schema, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if len(text) > 32_768 or "\\u0000" in text:
        raise ValueError("too long, or with NUL")
    return sha256(text.encode()).hexdigest()


def declare(backend_id: int, slug: str, tools: Sequence[Declared]) -> list[Result]:
    """Create and update the backend's tools in one transaction; a repeated declaration changes nothing. Tools
    that are not declared any more stay: retiring is staff's decision. Raises DeclarationError."""
    names = [tool.name for tool in tools]
    if len(set(names)) != len(names):
        raise DeclarationError("a tool is declared twice")
    if sum(len(tool.scopes) for tool in tools) > MAX_PAIRS:
        raise DeclarationError(f"the tools of one declaration name at most {MAX_PAIRS} scopes together")
    digests = [definition(tool) for tool in tools]
    with acting(f"backend:{slug}"):
        backend = Backend.objects.select_for_update().get(pk=backend_id)
        # Locked, so that a suspension by staff at this moment is not written over.
        known = {tool.name: tool for tool in backend.tools.select_for_update().prefetch_related("scopes")}
        wanted = {scope for tool in tools for scope in tool.scopes}
        if len(known.keys() | set(names)) > MAX_TOOLS:
            raise DeclarationError(f"a backend has at most {MAX_TOOLS} tools")
        if Scope.objects.exclude(name__in=wanted).count() + len(wanted) > MAX_SCOPES:
            raise DeclarationError(f"there are at most {MAX_SCOPES} scopes")
        Scope.objects.bulk_create([Scope(name=name) for name in sorted(wanted)], ignore_conflicts=True)
        scopes = {scope.name: scope for scope in Scope.objects.filter(name__in=wanted)}
        return [
            _declare_one(backend, known.get(tool.name), tool, digest, scopes)
            for tool, digest in zip(tools, digests, strict=True)
        ]


def _declare_one(backend: Backend, known: Tool | None, tool: Declared, digest: str, scopes: dict[str, Scope]) -> Result:
    needed = [scopes[name] for name in sorted(set(tool.scopes))]
    about = {"description": tool.description, "input_schema": tool.input_schema, "definition": digest}
    if known is None:
        made = Tool.objects.create(backend=backend, name=tool.name, access=tool.access, status="pending", **about)
        made.scopes.set(needed)
        return Result(tool.name, "pending", "created")
    if known.definition == digest:
        return Result(tool.name, known.status, "unchanged")
    loosens = known.access != tool.access or {s.name for s in known.scopes.all()} != set(tool.scopes)
    for name, value in about.items():
        setattr(known, name, value)
    known.access = tool.access
    if loosens and known.status == "active":
        known.status = "suspended"
    known.save()
    known.scopes.set(needed)
    return Result(tool.name, known.status, "changed")
