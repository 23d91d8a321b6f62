"""The case, told by its clients: alice and bob, through Claude, ChatGPT and the iOS app, against a running inner.

    python -m examples.inner.story

Each line says who called what, and what came of it. Exit status: 0 where everything came out as it must, 1 where
something did not, 2 where inner is not running.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import yaml
from mcp.client.client import Client
from mcp_types import CallToolResult

from examples.inner.__main__ import NotReady, manage, platform_url, port, resource
from examples.inner.surfaces import App, mcp_client, token

CLAUDE, CHATGPT, IOS = "claude-app", "chatgpt-app", "inner-ios-app"


@dataclass
class Story:
    """What happened so far."""

    url: str
    issuer: str
    failures: int = 0
    say: Callable[[str], Any] = print
    ids: dict[str, str] = field(default_factory=dict)

    def step(self, who: str, what: str, came: str, holds: bool) -> None:
        """One line."""
        self.failures += not holds
        self.say(f"{'' if holds else 'NOT AS IT MUST BE: '}{who:<16} {what:<34} {came}")

    def app(self, user: str, scope: str) -> App:
        """The iOS app of a user."""
        return App(self.url, token(self.issuer, user, IOS, scope))

    def over_rest(self, who: str, what: str, response: httpx2.Response, status: int) -> None:
        """A step of the app."""
        body = response.json() if response.content else {}
        found = ", ".join(one["text"] for one in body.get("memories", []))
        came = body.get("title") or found or body.get("text") or ("nothing" if body else "done")
        self.step(who, what, f"{response.status_code}: {came}", response.status_code == status)

    async def over_mcp(
        self, who: str, what: str, client: Client, tool: str, error: bool = False, **arguments: Any
    ) -> Any:
        """A step of an MCP client."""
        result = await client.call_tool(tool, arguments)
        told = result.structured_content or {}
        found = told.get("result", [told] if "text" in told else None)
        words = ", ".join(one["text"] for one in found) or "nothing" if found is not None else _text(result)
        self.step(who, what, words, bool(result.is_error) == error)
        return told


def _text(result: CallToolResult) -> str:
    """What a client without structured content shows."""
    return " ".join(getattr(part, "text", "") for part in result.content) or "done"


async def claude_and_chatgpt(story: Story) -> None:
    """Alice captures through Claude, and finds it again through ChatGPT."""
    server = f"{story.url}/mcp"
    async with mcp_client(server, CLAUDE, "alice") as claude:
        await story.over_mcp("Claude, alice", "recall (signs in: memory:read)", claude, "memory.recall", query="grief")
        kept = await story.over_mcp(
            "Claude, alice", "capture (steps up: memory:write)", claude, "memory.capture",
            text="I cried at the funeral of my grandmother", feeling="sad, and thankful",
        )  # fmt: skip
        story.ids["alice"] = kept["id"]
    async with mcp_client(server, CHATGPT, "alice") as chatgpt:
        await story.over_mcp("ChatGPT, alice", "recall: who was lost?", chatgpt, "memory.recall", query="grief")


async def another_user(story: Story) -> None:
    """Bob's token reads nothing of Alice's, by any client, by any argument."""
    async with mcp_client(f"{story.url}/mcp", CLAUDE, "bob", "memory:read memory:forget") as claude:
        await story.over_mcp("Claude, bob", "recall what alice captured", claude, "memory.recall", query="grief")
        forget = {"tool": "memory.forget", "id": story.ids["alice"]}
        await story.over_mcp("Claude, bob", "forget what is alice's", claude, error=True, **forget)
    app = story.app("bob", "memory:write memory:forget")
    story.over_rest("iOS, bob", "recall what alice captured", app.recall("grief"), 200)
    story.over_rest("iOS, bob", "forget what is alice's", app.forget(story.ids["alice"]), 404)


def strangers(story: Story) -> None:
    """No token, an old one, one without the scope."""
    story.over_rest("nobody", "recall without a token", App(story.url, None).recall("grief"), 401)
    old = manage("demo_token", "--client", "inner-ios", "--scope", "memory:read", "--lifetime", "-60")
    story.over_rest("iOS, alice", "recall with an expired token", App(story.url, old).recall("grief"), 401)
    story.over_rest("iOS, alice", "capture without memory:write", story.app("alice", "memory:read").capture("x"), 403)


@contextmanager
def policy(change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Another policy for a while, as an operator brings one in: exported, changed, applied; and back."""
    before = manage("policy", "export")
    after = yaml.safe_load(before)
    change(after)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("before", before), ("after", yaml.safe_dump(after))):
            Path(folder, f"{name}.yaml").write_text(text)
        manage("policy", "apply", "--prune", f"{folder}/after.yaml")
        try:
            yield
        finally:
            manage("policy", "apply", "--prune", f"{folder}/before.yaml")


def revoked(story: Story) -> None:
    """Staff take a grant away, and block something: the very next call is refused, and the one after it is not."""
    app = story.app("alice", "memory:read memory:write")

    def without_ios(document: dict[str, Any]) -> None:
        document["grants"] = [grant for grant in document["grants"] if grant.get("client") != "inner-ios"]

    def with_block(document: dict[str, Any]) -> None:
        block = {"client": "inner-ios", "scopes": ["memory:read"], "effect": "deny", "reason": "looked into"}
        document["grants"].append(block)

    story.over_rest("iOS, alice", "recall", app.recall("grief"), 200)
    with policy(without_ios):
        story.over_rest("iOS, alice", "recall, its grants revoked", app.recall("grief"), 403)
    with policy(with_block):
        story.over_rest("iOS, alice", "recall, forbidden by a block", app.recall("grief"), 403)
    story.over_rest("iOS, alice", "recall, as before", app.recall("grief"), 200)


def forgotten(story: Story) -> None:
    """What a user forgets is gone for every client."""
    app = story.app("alice", "memory:read memory:forget")
    story.over_rest("iOS, alice", "forget", app.forget(story.ids["alice"]), 204)
    story.over_rest("iOS, alice", "recall what was forgotten", app.recall("grief"), 200)


def main() -> int:
    """Tell it."""
    story = Story(resource().removesuffix("/mcp"), f"{platform_url()}/demo-issuer")
    try:
        httpx2.get(f"{story.url}/.well-known/oauth-protected-resource/mcp", timeout=5).raise_for_status()
        strangers(story)
        asyncio.run(claude_and_chatgpt(story))
        asyncio.run(another_user(story))
        revoked(story)
        forgotten(story)
    except httpx2.HTTPError:
        sys.stderr.write(f"inner does not run on port {port()}: start it with `make inner` in another shell\n")
        return 2
    except NotReady as error:
        sys.stderr.write(f"inner: {error}\n")
        return 2
    if story.failures:
        sys.stderr.write(f"{story.failures} steps did not come out as they must\n")
        return 1
    sys.stdout.write("\nEvery call is in the admin's audit search: who, through which client, which tool, and why.\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
