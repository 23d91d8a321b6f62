"""`Muniment`: one object and one decorator put a backend's tools behind the platform.

A call of a guarded tool is verified before its body runs, runs as the verified caller, and is reported afterwards.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, cast

from muniment import client
from muniment.background import Background, Job, logger
from muniment.calls import (
    Agent,
    Caller,
    Decision,
    Dpop,
    Incoming,
    Mode,
    Prepared,
    decision_of,
    delegating,
    incoming,
    receiving,
    request_info,
    sendable,
    sendable_tenant,
)
from muniment.errors import Misconfigured, Refused, Unavailable
from muniment.tools import (
    GUARDS,
    Access,
    FailMode,
    Resource,
    Tool,
    ToolCall,
    as_scopes,
    description_of,
    digest_of,
    signature_of,
    tool_of,
)

P = ParamSpec("P")
R = TypeVar("R")


class Muniment:
    """The guard of one backend.

    `url` and `key` (a backend key) default to MUNIMENT_URL and MUNIMENT_KEY; `timeout` is in seconds for each of at
    most two attempts. `spool` (MUNIMENT_SPOOL) is the folder for calls of tools that fail open, `receipts` one where
    the receipt of every answer is kept; `resource` (MUNIMENT_RESOURCE) is the URL under which clients know the backend
    (RFC 9728), and `authorization_servers` (MUNIMENT_AUTHORIZATION_SERVERS, with spaces between) give tokens for it.
    `digest_arguments` records a digest of each call's arguments. More arguments go to the HTTP client (`verify=`,
    `proxy=`). Raises Misconfigured.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 5.0,
        spool: str | os.PathLike[str] | None = None,
        receipts: str | os.PathLike[str] | None = None,
        resource: str | None = None,
        authorization_servers: Sequence[str] = (),
        digest_arguments: bool = False,
        **http: Any,
    ) -> None:
        url, key = url or os.environ.get("MUNIMENT_URL", ""), key or os.environ.get("MUNIMENT_KEY", "")
        if not url or not key:
            raise Misconfigured("Muniment needs the platform's URL and a backend key: MUNIMENT_URL, MUNIMENT_KEY.")
        self.platform = client.Platform(url, key, timeout, **http)
        self.resource = resource or os.environ.get("MUNIMENT_RESOURCE")
        named = os.environ.get("MUNIMENT_AUTHORIZATION_SERVERS", "").split()
        self.authorization_servers = tuple(authorization_servers) or tuple(named)
        self.tools: dict[str, Tool] = {}
        self.declared: dict[str, str] = {}
        self.background = Background()
        self._digest = digest_arguments
        self._declaring = False
        folder = spool or os.environ.get("MUNIMENT_SPOOL")
        self._spool = _open_calls(Path(folder), self.platform) if folder else None
        self._receipts = _receipt_store(receipts)

    def __repr__(self) -> str:
        return f"Muniment({self.platform.url!r})"

    # --- asking the platform ------------------------------------------------------------------------------

    def verify(self, token: str | None, tool: str, **more: Any) -> Decision:
        """Verify one call. `more`: `tenant`, `resource` ((type, id)), `agent` (Agent), `request` (id, trace_id,
        session_id, ip, user_agent), `arguments_digest`, `assertion` (an audience), `dpop` (Dpop) and `certificate` (its
        thumbprint), which prove that a bound token is the caller's. A denial is returned, not raised;
        raises Unavailable in an outage, and Throttled, Refused or Misconfigured where nothing was decided."""
        made, agent = _call(token, tool, **more)
        return self._decided(self.platform.send(made), agent, tool)

    async def averify(self, token: str | None, tool: str, **more: Any) -> Decision:
        """`verify`, for an event loop."""
        made, agent = _call(token, tool, **more)
        return self._decided(await self.platform.asend(made), agent, tool)

    def _decided(self, answer: dict[str, Any], agent: Agent, tool: str) -> Decision:
        try:
            decision = decision_of(answer, agent, tool)
        except (KeyError, TypeError, ValueError):
            raise Refused("not-a-decision", "What answers at the URL is not Muniment") from None
        if self._receipts is not None:
            self._receipts.keep(answer)
        if self._spool is not None and self._spool.due():
            self._report_spool()
        return decision

    def prepare(self, tool: str, given: Incoming, arguments: Mapping[str, Any] | None = None) -> Prepared:
        """Ask for a call before its body is reached, for a middleware; the call then takes what came of it."""
        try:
            return Prepared(tool, self.verify(given.token, tool, **self._about(tool, given, arguments or {})))
        except Unavailable as outage:
            return Prepared(tool, outage)

    async def aprepare(self, tool: str, given: Incoming, arguments: Mapping[str, Any] | None = None) -> Prepared:
        """`prepare`, for an event loop."""
        try:
            return Prepared(tool, await self.averify(given.token, tool, **self._about(tool, given, arguments or {})))
        except Unavailable as outage:
            return Prepared(tool, outage)

    def settle(self, prepared: Prepared, status: Literal["ok", "error"] = "error") -> None:
        """What came of a prepared call that no guarded function took; one that was taken reports for itself."""
        taken = prepared.take(prepared.tool)
        if isinstance(taken, Decision) and taken.allowed:
            self._report(taken.record, {"status": status})

    def _about(self, name: str, given: Incoming, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What is told of a call beside token and tool."""
        tool = self.tools.get(name)
        return {
            "tenant": given.tenant,
            "agent": given.agent,
            "request": given.request,
            "resource": tool.about(arguments) if tool else None,
            "assertion": tool.assertion if tool else None,
            "arguments_digest": digest_of(arguments) if self._digest and arguments else None,
            "dpop": given.dpop,
            "certificate": given.certificate,
        }

    # --- guarding -----------------------------------------------------------------------------------------

    def tool(
        self,
        name: str | None = None,
        *,
        scopes: str | Sequence[str] = (),
        access: Access | None = None,
        fail: FailMode = "closed",
        description: str | None = None,
        input_schema: Mapping[str, Any] | None = None,
        resource: Callable[..., Resource | None] | None = None,
        assertion: str | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """A decorator: the function, sync or async, is a tool that needs `scopes`.

        `name` defaults to the function's; `access` to read where all scopes are ones to read, else to write;
        `description` to the first paragraph of its docstring. `fail="open"` lets calls through while the platform is
        away: without a caller, spooled, reported later; it needs a spool. `resource` makes (type, id) of the arguments.
        The function then raises Denied, Unavailable, Throttled, Refused or Misconfigured before its body runs.
        """

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                raise TypeError("A generator cannot be guarded: its body runs after the call. Return a list.")
            spec = tool_of(
                name or str(getattr(function, "__name__", "")),
                scopes,
                access,
                fail=fail,
                description=description_of(function) if description is None else description,
                input_schema=input_schema,
                resource=resource,
                assertion=assertion,
                signature=signature_of(function),
            )
            self.add(spec)
            guarded = self._guarded(spec, function)
            setattr(guarded, GUARDS, spec.name)
            return guarded

        return decorate

    def add(self, tool: Tool) -> None:
        """Take a tool in: it is declared at start, or soon, if that was before. Raises Misconfigured for one that the
        platform would refuse, a name that is taken, or a tool that fails open without a spool."""
        if fault := tool.fault():
            raise Misconfigured(f"A tool is not valid: {fault}.")
        if tool.name in self.tools:
            raise Misconfigured(f"The tool {tool.name} is defined twice.")
        if tool.fail == "open" and self._spool is None:
            raise Misconfigured(f"The tool {tool.name} fails open: that needs a spool (MUNIMENT_SPOOL).")
        self.tools[tool.name] = tool
        if self._declaring:
            self.background.add(Job("declaring tools", self.declare), once=True)

    def fail_mode(self, tool: str) -> FailMode:
        """What happens to calls of a tool, known or not, while the platform is away."""
        return self.tools[tool].fail if tool in self.tools else "closed"

    def _guarded(self, tool: Tool, function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def aguarded(*args: P.args, **kwargs: P.kwargs) -> Any:
                with await self.abegin(tool, tool.arguments(args, kwargs)) as call:
                    return call.returned(await function(*args, **kwargs))

            return cast(Callable[P, R], aguarded)

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.begin(tool, tool.arguments(args, kwargs)) as call:
                return call.returned(function(*args, **kwargs))

        return guarded

    def begin(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolCall:
        """A call that may run, to be entered around its body. Raises what the decorator raises."""
        self._start()
        given = incoming()
        if (result := _taken(given, tool)) is None:
            result = self.prepare(tool.name, given, arguments).result
        return self._admitted(tool, given, result)

    async def abegin(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolCall:
        """`begin`, for an event loop."""
        self._start()
        given = incoming()
        if (result := _taken(given, tool)) is None:
            result = (await self.aprepare(tool.name, given, arguments)).result
        if isinstance(result, Unavailable) and tool.fail == "open":  # it is written to a disk before it runs
            return await asyncio.to_thread(self._admitted, tool, given, result)
        return self._admitted(tool, given, result)

    def _admitted(self, tool: Tool, given: Incoming, result: Decision | Unavailable) -> ToolCall:
        if isinstance(result, Unavailable):
            # Without a token there is nobody whose call could have been allowed: the outage changes nothing.
            if tool.fail != "open" or self._spool is None or not given.token:
                raise result
            return ToolCall(None, self._spool.began(tool.name, given, result.cause, self._report_spool))
        caller = result.require()
        return ToolCall(caller, functools.partial(self._report, caller.record))

    # --- what came in -------------------------------------------------------------------------------------

    def request(
        self,
        token: str | None,
        *,
        agent: Agent | None = None,
        tenant: str | None = None,
        dpop: Dpop | None = None,
        certificate: str | None = None,
        **info: str | None,
    ) -> AbstractContextManager[Incoming]:
        """Serve a request with the user's token, where no adapter does: `with guard.request(token): recall("...")`.
        `info`: `id`, `trace_id`, `session_id`, `ip`, `user_agent`; `dpop` and `certificate` as in `verify`."""
        given = Incoming(token, request_info(**info), agent or Agent(), tenant, dpop=dpop, certificate=certificate)
        return receiving(given)

    def delegate(
        self, name: str, scopes: str | Sequence[str] | None = None, mode: Mode = "subagent"
    ) -> AbstractContextManager[Agent]:
        """Hand work to a sub-agent: what is called within is called in its name, with no more than `scopes`."""
        return delegating(name, None if scopes is None else as_scopes(scopes), mode)

    def as_caller(self, connection: Any, caller: Caller | EllipsisType | None = ...) -> Any:
        """A transaction of a PostgreSQL connection in which row-level security sees the verified caller, and nobody
        where there is none: `with guard.as_caller(connection): ...` (see muniment.isolation)."""
        from muniment import isolation  # only who has PostgreSQL needs it

        return isolation.as_caller(connection, caller)

    def check_receipt(self, decision: Decision, trust: str) -> None:
        """Whether the receipt of a decision holds: its record is in a batch that a writer signed. `trust`: the text of
        a saved GET /v1/keys, or vkeys, one a line; keys that are fetched for the purpose prove nothing. Raises
        `receipts.ReceiptError`, and `keys.TrustError` for what names no writer."""
        from muniment import receipts  # only who checks them needs it

        receipts.check(decision.answer.get("receipt"), receipts.writer_keys(trust), time.time_ns() // 1000)

    # --- telling the platform -----------------------------------------------------------------------------

    def start(self) -> dict[str, str]:
        """Declare the tools now; the status of each (`active`, `pending`, ...). Calling it is not needed: with the
        first call they are declared in the background. Raises what keeps them from being declared."""
        self._declaring = True
        return self.declare()

    async def astart(self) -> dict[str, str]:
        """`start`, for an event loop."""
        self._declaring = True
        return self._told(await self.platform.asend(self._declaration()))

    def declare(self) -> dict[str, str]:
        """PUT /v1/tools with all tools; the status of each."""
        return self._told(self.platform.send(self._declaration()))

    def _declaration(self) -> client.Request:
        tools = [tool.declaration() for tool in list(self.tools.values())]  # a copy: one may be added meanwhile
        return client.request("PUT", "/v1/tools", {"tools": tools}, of="report")

    def _told(self, answer: Mapping[str, Any]) -> dict[str, str]:
        self.declared = {str(row["name"]): str(row["status"]) for row in answer.get("tools", [])}
        if waiting := sorted(name for name, status in self.declared.items() if status != "active"):
            logger.warning("tools that are not active yet, and are refused: %s", ", ".join(waiting))
        return self.declared

    def _start(self) -> None:
        if not self._declaring:
            self._declaring = True
            self.background.add(Job("declaring tools", self.declare), once=True)
            if self._spool is not None and self._spool.due():
                self._report_spool()

    def _report(self, record: str, outcome: dict[str, Any]) -> None:
        made = client.request("POST", f"/v1/records/{record}/outcome", outcome, of="report")
        self.background.add(Job("reporting an outcome", functools.partial(self.platform.send, made)))

    def _report_spool(self) -> None:
        if self._spool is not None:
            self.background.add(Job("reporting calls made without the platform", self._spool.report), once=True)

    def flush(self, seconds: float = 5.0) -> bool:
        """Wait until everything is reported; whether that came in time."""
        return self.background.wait(seconds)

    def close(self, seconds: float = 5.0) -> None:
        """Report what waits, for so long at most, and end threads and connections."""
        self.background.close(seconds)
        if self._spool is not None:
            self._spool.close()
        self.platform.close()

    async def aclose(self, seconds: float = 5.0) -> None:
        """`close`, and the connections of this event loop."""
        await asyncio.to_thread(self.close, seconds)
        await self.platform.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _call(
    token: str | None,
    tool: str,
    *,
    tenant: str | None = None,
    resource: Mapping[str, str] | Resource | None = None,
    agent: Agent | None = None,
    request: Mapping[str, str] | None = None,
    arguments_digest: str | None = None,
    assertion: str | None = None,
    dpop: Dpop | None = None,
    certificate: str | None = None,
) -> tuple[client.Request, Agent]:
    """The request of a verify call, without the members that say nothing."""
    agent = agent or Agent()
    if isinstance(resource, tuple):
        resource = {"type": resource[0], "id": resource[1]}
    more = {
        "tenant": sendable_tenant(tenant),
        "resource": resource,
        "request": dict(request or {}) or None,
        "arguments_digest": arguments_digest,
        "assertion": assertion,
        "agent": agent.body() if agent != Agent() else None,
        "dpop": dpop.body() if dpop else None,
        "mtls": {"x5t#S256": certificate} if certificate else None,
    }
    body = {"token": sendable(token), "tool": tool} | {name: value for name, value in more.items() if value is not None}
    return client.request("POST", "/v1/verify", body), agent


def _taken(given: Incoming, tool: Tool) -> Decision | Unavailable | None:
    return given.prepared.take(tool.name) if given.prepared else None


def _open_calls(folder: Path, platform: client.Platform) -> Any:
    from muniment.open_calls import OpenCalls  # only who fails open needs it

    return OpenCalls(folder, platform)


def _receipt_store(folder: str | os.PathLike[str] | None) -> Any:
    if folder is None:
        return None
    from muniment.receipts import Store  # only who keeps receipts needs it

    return Store(Path(folder))
