"""A backend declares its tools: new ones wait for approval, and a change of what a tool may do or needs suspends
it until staff approve it again, so that a backend key cannot loosen what staff decided. Where one of its scopes is
pinned, any change of its definition does: an AI client also acts on what a tool says of itself."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from audit.outbox import acting
from muniment import statements
from tools import approval
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
        held = backend.tools.select_for_update(of=("self",)).prefetch_related("scopes", "approved")
        known = {tool.name: tool for tool in held}
        wanted = {scope for tool in tools for scope in tool.scopes}
        if len(known.keys() | set(names)) > MAX_TOOLS:
            raise DeclarationError(f"a backend has at most {MAX_TOOLS} tools")
        if Scope.objects.exclude(name__in=wanted).count() + len(wanted) > MAX_SCOPES:
            raise DeclarationError(f"there are at most {MAX_SCOPES} scopes")
        Scope.objects.bulk_create([Scope(name=name) for name in sorted(wanted)], ignore_conflicts=True)
        scopes = {scope.name: scope for scope in Scope.objects.filter(name__in=wanted)}
        pinned = approval.pins()
        return [
            _create(backend, tool, digest, scopes)
            if (row := known.get(tool.name)) is None
            else _change(row, tool, digest, scopes, pinned)
            for tool, digest in zip(tools, digests, strict=True)
        ]


def _about(tool: Declared, digest: str) -> dict[str, Any]:
    return {"description": tool.description, "input_schema": tool.input_schema, "definition": digest}


def _create(backend: Backend, tool: Declared, digest: str, scopes: dict[str, Scope]) -> Result:
    about = _about(tool, digest)
    made = Tool.objects.create(backend=backend, name=tool.name, access=tool.access, status="pending", **about)
    made.scopes.set([scopes[name] for name in sorted(set(tool.scopes))])
    return Result(tool.name, "pending", "created")


def _change(known: Tool, tool: Declared, digest: str, scopes: dict[str, Scope], pinned: set[str]) -> Result:
    if known.definition == digest:
        return Result(tool.name, known.status, "unchanged")
    approval.before_change(known)
    before, new = approval.content(known), set(tool.scopes)
    after = {"name": tool.name, "access": tool.access, "scopes": sorted(new), **_about(tool, digest)}
    loosens = approval.differ(before, after, ("access", "scopes"))
    changes = approval.differ(before, after)
    if known.status == "active" and (loosens or (changes and pinned & {*before["scopes"], *new})):
        known.status = "suspended"
    for name, value in _about(tool, digest).items():
        setattr(known, name, value)
    known.access = tool.access
    known.save()
    known.scopes.set([scopes[name] for name in sorted(new)])
    if changes:
        approval.after_change(known)
    return Result(tool.name, known.status, "changed")
