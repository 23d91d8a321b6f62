"""Tools as a backend declares them, and one call of one."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from hashlib import sha256
from inspect import Signature, cleandoc, signature
from types import TracebackType
from typing import Any, Literal, TypeVar

from muniment import statements
from muniment.background import logger
from muniment.calls import SCOPE_NAME, Caller, calling

Access = Literal["read", "write", "destructive"]
FailMode = Literal["closed", "open"]
Resource = tuple[str, str]
# What the platform takes; told when a tool is defined rather than when it is declared.
TOOL_NAME = re.compile(r"[A-Za-z0-9_./:-]{1,128}")
RESOURCE_TYPE = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
RESOURCE_ID = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,256}")
GUARDS = "muniment_guards"  # attribute of a guarded function: its tool's name, by which adapters tell it from another
MAX_TOUCHED = 100
MAX_DESCRIPTION = 2000
Result = TypeVar("Result")


@dataclass(slots=True)
class Tool:
    """One tool: its name, the scopes that it needs, and what happens while the platform is away (`fail`). `resource`
    makes of a call's arguments the (type, id) that it is about; `assertion` is the audience of an identity assertion
    that each call is to bring."""

    name: str
    scopes: tuple[str, ...]
    access: Access
    fail: FailMode = "closed"
    description: str = ""
    input_schema: Mapping[str, Any] | None = None
    resource: Callable[..., Resource | None] | None = None
    assertion: str | None = None
    signature: Signature | None = field(default=None, repr=False)

    def fault(self) -> str | None:
        """What of it the platform would refuse, in words."""
        if not TOOL_NAME.fullmatch(self.name):
            return "a tool's name has letters, digits and _ . / : - only, at most 128"
        if not all(SCOPE_NAME.fullmatch(scope) for scope in self.scopes):
            return f"a scope of {self.name} is no scope (RFC 6749 section 3.3)"
        if self.access not in ("read", "write", "destructive"):
            return f"the access of {self.name} must be read, write or destructive"
        if self.fail not in ("closed", "open"):
            return f"{self.name} must fail closed or open"
        return None

    def describe(self, description: str | None, input_schema: Mapping[str, Any] | None) -> None:
        """Take what a framework knows of the tool, where nothing was said of it."""
        self.input_schema = self.input_schema or input_schema
        self.description = self.description or (description or "")[:MAX_DESCRIPTION]

    def declaration(self) -> dict[str, Any]:
        """What PUT /v1/tools is told of it."""
        declared: dict[str, Any] = {
            "name": self.name,
            "access": self.access,
            "scopes": list(self.scopes),
            "description": self.description,
        }
        return declared if self.input_schema is None else declared | {"input_schema": self.input_schema}

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name; empty where they do not fit, which the body will say itself."""
        if self.signature is None:
            return dict(kwargs)
        try:
            return dict(self.signature.bind(*args, **kwargs).arguments)
        except TypeError:
            return {}

    def about(self, arguments: Mapping[str, Any]) -> dict[str, str] | None:
        """The resource of a call. What cannot be told is left out: it is a note, no rule, and made of what a caller
        sent, who must not spoil the call by it."""
        if self.resource is None:
            return None
        try:
            found = self.resource(**arguments)
            kind, id = (str(found[0]), str(found[1])) if found is not None else ("", "")
        except Exception:
            return None
        return {"type": kind, "id": id} if tellable(kind, id) else None


def tellable(kind: str, id: str) -> bool:
    """Whether the platform takes the type and id of a resource."""
    return RESOURCE_TYPE.fullmatch(kind) is not None and RESOURCE_ID.fullmatch(id) is not None


def access_of(scopes: Sequence[str]) -> Access:
    """What a tool that says nothing of its access may do: read, if all that it needs are scopes to read; else write,
    since calling a write a read would be the worse mistake."""
    return "read" if scopes and all(scope.rpartition(":")[2] == "read" for scope in scopes) else "write"


def description_of(function: Callable[..., Any]) -> str:
    """The first paragraph of its docstring."""
    text = cleandoc(function.__doc__ or "").split("\n\n", 1)[0]
    return " ".join(text.split())[:MAX_DESCRIPTION]


def signature_of(function: Callable[..., Any]) -> Signature | None:
    """Its signature, where it has one."""
    try:
        return signature(function)
    except (TypeError, ValueError):
        return None


def digest_of(arguments: Mapping[str, Any]) -> str | None:
    """`sha256:<hex>` of the canonical JSON (RFC 8785, without floats) of a call's arguments; None where they are no
    such JSON."""
    try:
        return f"sha256:{sha256(statements.dump(dict(arguments))).hexdigest()}"
    except (TypeError, ValueError, RecursionError):
        return None


def as_scopes(scopes: str | Sequence[str]) -> tuple[str, ...]:
    """Scope names; a string holds them with spaces between, as OAuth writes them (RFC 6749 section 3.3)."""
    return tuple(scopes.split()) if isinstance(scopes, str) else tuple(scopes)


def tool_of(name: str, scopes: str | Sequence[str], access: Access | None, **more: Any) -> Tool:
    """A tool of what a decorator, a dependency or a permission is told of it; `more` are members of Tool."""
    needed = as_scopes(scopes)
    return Tool(name=name, scopes=needed, access=access or access_of(needed), **more)


Finish = Callable[[dict[str, Any]], None]


class ToolCall:
    """A call that may run its body: as a verified caller, or, with a tool that fails open, as nobody. A context manager
    around the body; `finish` is told what came of it (the body of POST /v1/records/{record}/outcome)."""

    def __init__(self, caller: Caller | None, finish: Finish) -> None:
        self.caller = caller
        self.resources: list[Resource] = []
        self.count: int | None = None
        self._finish = finish
        self._as: AbstractContextManager[None] = calling(caller)
        self._reset: Token[ToolCall | None] | None = None
        self._started = 0.0

    def __enter__(self) -> ToolCall:
        self._as.__enter__()
        self._reset = _current.set(self)
        self._started = time.perf_counter()
        return self

    def returned(self, result: Result) -> Result:
        """Note what the body returned; of a list, how many. Raises TypeError for what would run after the call."""
        if isinstance(result, Coroutine | Generator | AsyncGenerator):
            if not isinstance(result, AsyncGenerator):
                result.close()
            raise TypeError("A guarded function must return a value: a coroutine or a generator runs after the call.")
        if isinstance(result, list | tuple) and self.count is None:
            self.count = len(result)
        return result

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        duration = int((time.perf_counter() - self._started) * 1000)
        if self._reset is not None:
            _current.reset(self._reset)
        self._as.__exit__(kind, error, trace)
        outcome: dict[str, Any] = {"status": "ok" if error is None else "error", "duration_ms": duration}
        if self.resources:
            outcome["resources"] = [{"type": kind, "id": id} for kind, id in self.resources]
        if self.count is not None:
            outcome["count"] = self.count
        try:
            self._finish(outcome)
        except Exception as failed:  # the body has run: its result, or its own error, must reach its caller
            logger.error("an outcome cannot be reported: %s", type(failed).__name__)


_current: ContextVar[ToolCall | None] = ContextVar("muniment_call", default=None)


def touched(kind: str, id: str) -> None:
    """Note that the tool which runs now touched a resource; it is reported with the outcome, the first 100 of them.
    Outside of a guarded tool nothing is noted, and neither is what the platform does not take: one such id must not
    cost the whole outcome. A type has 64 characters at most (letters, digits, `_ . : / -`), an id 256."""
    call = _current.get()
    if call is None or len(call.resources) >= MAX_TOUCHED or (kind, id) in call.resources:
        return
    if tellable(kind, id):
        call.resources.append((kind, id))
    else:
        logger.warning("a touched resource is not reported: its type or id is none that the platform takes")
