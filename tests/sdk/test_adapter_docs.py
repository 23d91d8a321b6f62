"""What the pages about FastAPI and Django show runs as it is shown, against the real platform."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from governance import process
from tests import world as worlds
from tests.reset import reset
from tests.served import platform
from tests.world import token

ROOT = Path(__file__).resolve().parents[2]
ASK = """
import sys
import django
django.setup()
from django.test import Client
for path in ("/memories", "/memories/latest", "/.well-known/oauth-protected-resource/mcp"):
    for headers in ({"Authorization": f"Bearer {sys.argv[1]}"}, {}):
        response = Client().get(path, headers=headers)
        sys.stdout.write(f"{response.status_code} {response.content.decode()}\\n")
from inner.guard import guard
guard.close()
"""


def snippets(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/integrations" / name).read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def environment(migrated: None) -> Iterator[dict[str, str]]:
    """What the pages say that there is."""
    reset()
    world = worlds.build()
    world.backend.tools.create(name="memory.latest", access="read", status="active").scopes.add(
        world.grant.scopes.get()
    )
    with platform() as url:
        yield {"MUNIMENT_URL": url, "MUNIMENT_KEY": world.key}
    process.stop_recorder()


async def answers(found: dict[str, Any], *paths: str) -> list[httpx2.Response]:
    """What an application answers to Alice, and to nobody."""
    transport = httpx2.ASGITransport(found["app"])
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://inner") as client:
            alice = {"Authorization": f"Bearer {token()}"}
            return [await client.get(path, headers=headers) for path in paths for headers in (alice, {})]
    finally:
        await found["guard"].aclose()


def test_the_page_about_fastapi(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    of_fastapi, of_starlette = snippets("fastapi.md")
    found: dict[str, Any] = {"__name__": "of_fastapi"}
    exec(of_fastapi, found)
    asked = asyncio.run(answers(found, "/memories?query=sea", "/memories/latest"))
    assert [response.status_code for response in asked] == [200, 401, 200, 401]
    assert asked[0].json() == ["what alice remembers of sea"] and asked[2].json() == ["what alice remembers last"]
    found = {"__name__": "of_starlette"}
    exec(of_starlette, found)
    asked = asyncio.run(answers(found, "/memories?query=sea"))
    assert [response.status_code for response in asked] == [200, 401]
    assert asked[0].json() == ["memories of sea"]


def test_the_page_about_django(environment: dict[str, str], tmp_path: Path) -> None:
    for snippet in snippets("django.md"):
        path = tmp_path / snippet.partition("\n")[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(snippet)
    more = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'sdk'}", "DJANGO_SETTINGS_MODULE": "inner.settings"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, token()], env=os.environ | environment | more, cwd=tmp_path, timeout=60,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["200", "401", "200", "401", "200", "200"], done.stderr
    assert '"of":"alice"' in lines[0].replace(" ", "") and '"of":"alice"' in lines[2].replace(" ", "")
