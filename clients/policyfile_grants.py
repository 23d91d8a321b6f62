"""The grants of a policy file. A grant is known by everything but reason and dates, so a file can make one,
move its end, or (with `prune`) leave it out to revoke it; another start is another grant."""

from collections.abc import Callable
from datetime import datetime

from django.utils import timezone
from msgspec import UNSET

from audit import subjects
from audit.models import Subject
from clients import grants
from clients.grants import Actor, GrantError, Identity
from clients.models import Client, Grant, Issuer
from clients.policyfile import GrantEntry, PolicyFile, PolicyFileError, find
from tools.models import Scope, Tool


class Grants:
    """One run over the grants of a file, after everything that they name was written. `note(action, kind,
    name, detail)` is told each change, `notices` what the person should know."""

    def __init__(
        self,
        file: PolicyFile,
        actor: Actor,
        note: Callable[[str, str, object, str], None],
        notices: list[str],
    ) -> None:
        self.file, self.actor, self.note, self.notices = file, actor, note, notices
        self.now: datetime = timezone.now()
        self.issuers = {row.issuer: row for row in Issuer.objects.all()}
        self.clients = {row.slug: row for row in Client.objects.all()}
        self.scopes = {row.name: row for row in Scope.objects.all()}
        self.tools = {(row.backend.slug, row.name): row for row in Tool.objects.select_related("backend")}

    def apply(self, prune: bool) -> None:
        """Make, move and end grants. Raises PolicyFileError."""
        if self.file.grants is UNSET:
            return
        held = grants.active(self.now).select_for_update(of=("self",))
        known = {grants.identity(grant): grant for grant in held.prefetch_related("scopes")}
        kept: dict[Identity, str] = {}
        for position, entry in enumerate(self.file.grants):
            path = f"grants[{position}]"
            wanted = self._grant(path, entry)
            identity = self._identity(wanted, entry)
            if identity in kept:
                raise PolicyFileError(path, f"says the same as {kept[identity]}, but for reason and dates")
            kept[identity] = path
            try:
                self._one(entry, wanted, known.get(identity))
            except GrantError as error:
                raise PolicyFileError(path, str(error)) from None
        if prune:
            for identity, grant in known.items():
                if identity not in kept:
                    self._revoke(grant, "The policy file leaves it out.")

    def _grant(self, path: str, entry: GrantEntry) -> Grant:
        """The entry's references, as an unsaved grant."""
        tool = entry.tool
        return Grant(
            client=None if entry.client is None else find(self.clients, entry.client, f"{path}.client", "client"),
            subject=self._subject(f"{path}.subject", entry),
            tool=None if tool is None else find(self.tools, (tool.backend, tool.name), f"{path}.tool", "tool"),
        )

    def _subject(self, path: str, entry: GrantEntry) -> Subject | None:
        """The user, who may be new to us: staff can grant or block before the first call."""
        if entry.subject is None:
            return None
        # With a mistyped issuer a deny grant would match nobody, silently.
        issuer = find(self.issuers, entry.subject.issuer, f"{path}.issuer", "issuer")
        return Subject.objects.get(uid=subjects.resolve(issuer.issuer, entry.subject.sub))

    def _identity(self, wanted: Grant, entry: GrantEntry) -> Identity:
        return Identity(
            entry.effect,
            wanted.client_id,
            tuple(sorted(set(entry.scopes))),
            wanted.subject_id,
            entry.role,
            entry.tenant,
            wanted.tool_id,
            tuple(sorted(set(entry.modes))),
        )

    def _one(self, entry: GrantEntry, wanted: Grant, known: Grant | None) -> None:
        if entry.expires_at is not None and entry.expires_at <= self.now:
            if known is not None:
                self._revoke(known, "The policy file says that it has expired.")
            else:
                self.notices.append(f"{_words(entry)} expired on {entry.expires_at:%Y-%m-%d}: not made")
            return
        if known is not None and known.starts_at != entry.starts_at:
            self._revoke(known, "The policy file gives it another start.")
            known = None
        if known is None:
            made = self._create(entry, wanted)
            self.note("create", "grant", made.pk, _words(entry))
        elif known.expires_at != entry.expires_at:
            grants.extend(known, actor=self.actor, reason=entry.reason, expires_at=entry.expires_at)
            self.note("extend", "grant", known.pk, f"until {entry.expires_at or 'it is revoked'}")

    def _create(self, entry: GrantEntry, wanted: Grant) -> Grant:
        missing = [name for name in entry.scopes if name not in self.scopes]
        if missing:
            raise GrantError(f"there is no scope {missing[0]}")
        return grants.create(
            actor=self.actor,
            reason=entry.reason,
            client=wanted.client,
            scopes=[self.scopes[name] for name in entry.scopes],
            effect=entry.effect,
            subject=wanted.subject,
            role=entry.role,
            tenant=entry.tenant,
            tool=wanted.tool,
            modes=entry.modes,
            starts_at=entry.starts_at,
            expires_at=entry.expires_at,
        )

    def _revoke(self, grant: Grant, reason: str) -> None:
        grants.revoke(grant, actor=self.actor, reason=reason)
        self.note("revoke", "grant", grant.pk, reason)


def _words(entry: GrantEntry) -> str:
    """A grant in words without anybody's name."""
    what = " ".join(entry.scopes) or (entry.tool.name if entry.tool else "everything")
    whom = " for one user" if entry.subject else ""
    return f"{entry.effect} {what} to {entry.client or 'any client'}{whom}"
