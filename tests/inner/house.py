"""Inner beside the platform, both real and over HTTP, for tests: the demo's policy, inner's own policy and database."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from unittest import mock

import psycopg
from django.test import override_settings

from clients import policyfile, policyfile_apply
from examples.inner import __main__ as inner
from examples.inner import database
from governance import demo
from tests.live import free_port
from tests.served import asgi, platform


@dataclass
class House:
    """Where everything is. `module` is inner's server, as it runs."""

    platform: str
    url: str
    key: str
    database: str
    module: Any

    @property
    def mcp(self) -> str:
        """The MCP server."""
        return f"{self.url}/mcp"

    @property
    def issuer(self) -> str:
        """The demo issuer."""
        return f"{self.platform}/demo-issuer"


@contextmanager
def house(superuser_url: str, folder: Path) -> Iterator[House]:
    """Both, until the end. The database of the tests must be empty."""
    folder.chmod(0o700)
    with platform() as url, override_settings(MUNIMENT_URL=url):
        demo.load_policy()
        demo.publish_keys()
        port = free_port()
        text = Template(inner.POLICY.read_text()).substitute(resource=f"http://127.0.0.1:{port}/mcp")
        policyfile_apply.apply(policyfile.parse(text), "policy.yaml")
        here = House(url, f"http://127.0.0.1:{port}", demo.backend_key(), "", None)
        here.database = database.prepare(superuser_url, folder)
        given = {
            "MUNIMENT_URL": url, "MUNIMENT_KEY": here.key, "MUNIMENT_RESOURCE": here.mcp,
            "MUNIMENT_AUTHORIZATION_SERVERS": here.issuer, "INNER_DATABASE_URL": here.database,
            "INNER_ROOT_KEY": inner.new_root_key(),
        }  # fmt: skip
        with mock.patch.dict(os.environ, given):
            sys.modules.pop("examples.inner.server", None)
            here.module = importlib.import_module("examples.inner.server")
        try:
            with asgi(here.module.app, port):
                yield here
        finally:
            here.module.memories.pool.close()
            sys.modules.pop("examples.inner.server", None)
            with psycopg.connect(superuser_url, autocommit=True) as connection:
                connection.execute(f'DROP DATABASE "{database.NAME}" WITH (FORCE)')
