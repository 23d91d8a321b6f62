"""How to begin: what has to be there before the first call, shown on the home page until there was one."""

from dataclasses import dataclass
from typing import Any

from django.urls import reverse

from audit.models import Rollup
from audit.viewer import Viewer
from clients.models import Client, Grant, Issuer
from tools.models import Backend, BackendKey, Tool

STEPS: list[tuple[str, Any, str, str]] = [
    ("Add the issuer that your users sign in to", Issuer, "clients_issuer", "clients.add_issuer"),
    ("Add the backend that holds their data", Backend, "tools_backend", "tools.add_backend"),
    ("Make a key with which it proves who it is", BackendKey, "tools_backendkey", "tools.add_backendkey"),
    ("Have it declare its tools, or add them", Tool, "tools_tool", "tools.add_tool"),
    ("Add the AI client, with its OAuth client ids", Client, "clients_client", "clients.add_client"),
    ("Grant the client the scopes that the tools need", Grant, "clients_grant", "clients.add_grant"),
]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, whether it is done, and where the viewer can do it (None: it is somebody else's to do)."""

    words: str
    done: bool
    url: str | None


def called(viewer: Viewer) -> bool:
    """Whether there ever was a call. It is asked of the weeks, which are kept for ever. Who is confined to tenants is
    not told how far the platform is."""
    if viewer.tenants is not None:
        return True
    return viewer.records and Rollup.objects.filter(cut="sum", span="1w", type="decision").exists()


def steps(user: Any) -> list[Step]:
    """What is to be done before the first call, in order."""
    return [
        Step(words, model.objects.exists(), reverse(f"admin:{page}_add") if user.has_perm(permission) else None)
        for words, model, page, permission in STEPS
    ]
