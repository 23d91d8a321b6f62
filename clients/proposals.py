"""A change of grants that somebody thinks of, before it is made: what the preview shows, and what is then saved or
asked for."""

import json
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Any

from django.utils import timezone

from audit.models import Subject
from clients import grant_words
from clients.grants import Identity, end_of, identity_with
from clients.models import AccessRequest, Client, Grant
from tools.models import Scope, Tool

# By kind, and whether it is of a block: what its effect is called, and what is said where there is none.
HEADINGS = {
    ("grant", False): ("What would change", "Nothing would change now."),
    ("grant", True): ("What would change", "Nothing would change now."),
    ("extend", False): ("What relies on it,", "Nothing: no tool is callable by it alone."),
    ("extend", True): ("What it blocks", "Nothing: no call is refused by it alone."),
    ("revoke", False): ("What would stop", "Nothing: no tool is callable by it alone."),
    ("revoke", True): ("What would open again", "Nothing: no call is refused by it alone."),
}


@dataclass(frozen=True, slots=True)
class Proposal:
    """What would be granted. `kind` is `grant` (a new one), `extend` or `revoke` (of `grant`). The end is `expires_at`,
    timezone-aware, None for never; where `days` are given it moves with the day on which the grant is made."""

    kind: str
    effect: str
    client: Client | None
    scopes: tuple[Scope, ...]
    subject: Subject | None = None
    role: str | None = None
    tenant: str | None = None
    tool: Tool | None = None
    modes: tuple[str, ...] = ()
    starts_at: datetime | None = None
    expires_at: datetime | None = None
    days: int | None = None
    grant: Grant | None = None

    def unsaved(self) -> Grant:
        """As a grant, without its scopes."""
        return Grant(
            effect=self.effect, client=self.client, subject=self.subject, role=self.role or None,
            tenant=self.tenant or None, tool=self.tool, modes=list(self.modes), starts_at=self.starts_at,
            expires_at=self.expires_at,
        )  # fmt: skip

    def identity(self) -> Identity:
        """What makes two grants the same."""
        return identity_with(self.unsaved(), self.scopes)

    def members(self) -> dict[str, Any]:
        """What `grants.create` takes of it."""
        return {
            "effect": self.effect, "client": self.client, "scopes": self.scopes, "subject": self.subject,
            "role": self.role, "tenant": self.tenant, "tool": self.tool, "modes": self.modes,
            "starts_at": self.starts_at, "expires_at": self.expires_at,
        }  # fmt: skip

    def scope_names(self) -> list[str]:
        """The scopes that it names, without what they imply."""
        return [scope.name for scope in self.scopes]

    def sentence(self) -> str:
        """`Claude may use memory:read for everyone`."""
        return grant_words.sentence_of(
            effect=self.effect, client=self.client, scopes=self.scopes, tool=self.tool,
            uid=self.subject.uid if self.subject else None, role=self.role, tenant=self.tenant, modes=self.modes,
        )  # fmt: skip

    def whom(self) -> str:
        """`for everyone`, `for the role doctor`."""
        uid = self.subject.uid if self.subject else None
        return grant_words.whom_of(uid, self.role, self.tenant, ())

    def heading(self) -> str:
        """What the page says of its effect: `What would change for everyone`."""
        later = " once it has begun" if self.starts_at is not None and self.starts_at > timezone.now() else ""
        return f"{HEADINGS[self.kind, self.effect == 'deny'][0]} {self.whom()}{later}"

    def nothing(self) -> str:
        """What the page says where it has none."""
        return HEADINGS[self.kind, self.effect == "deny"][1]

    def until(self, at: datetime | None) -> "Proposal":
        """The same with another end."""
        return replace(self, expires_at=at)

    def digest(self) -> str:
        """Which proposal this is: equal for equal ones, hex. An end that moves counts as its number of days."""
        end = self.days if self.days is not None else _iso(self.expires_at)
        whole = [self.kind, *self.identity(), _iso(self.starts_at), end, self.grant.pk if self.grant else None]
        return sha256(json.dumps(whole).encode()).hexdigest()


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def to_extend(grant: Grant, expires_at: datetime | None, days: int | None = None) -> Proposal:
    """To let a grant end at another time; with `days`, that many from when it is approved."""
    return _of_grant("extend", grant, expires_at, days)


def to_revoke(grant: Grant) -> Proposal:
    """To end a grant for good."""
    return _of_grant("revoke", grant, grant.expires_at, None)


def _of_grant(kind: str, grant: Grant, expires_at: datetime | None, days: int | None) -> Proposal:
    return Proposal(
        kind=kind, effect=grant.effect, client=grant.client, scopes=tuple(grant.scopes.all()), subject=grant.subject,
        role=grant.role, tenant=grant.tenant, tool=grant.tool, modes=tuple(grant.modes), starts_at=grant.starts_at,
        expires_at=expires_at, days=days, grant=grant,
    )  # fmt: skip


def of_request(asked: AccessRequest, now: datetime) -> Proposal:
    """What somebody asked for, if it is approved now."""
    return Proposal(
        kind="grant" if asked.extends is None else "extend", effect=asked.effect, client=asked.client,
        scopes=tuple(asked.scopes.all()), subject=asked.subject, role=asked.role, tenant=asked.tenant,
        tool=asked.tool, modes=tuple(asked.modes), starts_at=asked.starts_at, expires_at=end_of(asked, now),
        days=asked.days, grant=asked.extends,
    )  # fmt: skip
