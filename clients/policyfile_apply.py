"""Applying a policy file: one transaction, each change recorded as `command:policy`'s.

What the file names is created or updated. With `prune`, what a section of the file leaves out is ended in the
mildest way that takes its rights away: grants are revoked, tools retired, clients suspended, backends and
issuers disabled; limits are deleted, and a scope is deleted where nothing names it, else it stays. Nothing else that
a record may speak of is deleted, and a section that the file does not have is not touched.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.db import DatabaseError, connection, models, transaction
from msgspec import UNSET

from audit import subjects
from audit.outbox import acting
from clients.grants import Actor
from clients.models import AcceptedIssuer, Client, Issuer, OAuthClientId
from clients.policyfile import (
    BackendEntry,
    ClientEntry,
    PolicyFile,
    PolicyFileError,
    ScopeEntry,
    ToolEntry,
    find,
)
from clients.policyfile_backends import Backends
from clients.policyfile_binding import apply_binding
from clients.policyfile_claims import apply_claims
from clients.policyfile_grants import Grants
from clients.policyfile_introspection import apply_introspection, check_one_to_ask
from clients.policyfile_limits import Limits
from tools import approval
from tools.models import Backend, PinnedScope, Scope, Tool

ACTOR = "command:policy"


class Change(NamedTuple):
    """One thing that was, or would be, changed: `create client claude`, with the members that differ."""

    action: str
    kind: str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.action} {self.kind} {self.name}" + (f": {self.detail}" if self.detail else "")


@dataclass
class Result:
    """What was changed, and what the person who applies the file should know."""

    changes: list[Change] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def apply(file: PolicyFile, source: str, prune: bool = False) -> Result:
    """Apply a file; `source` is its name, for the log. Applied again, it changes nothing. Raises
    PolicyFileError; then nothing was changed."""
    return _run(file, source, prune, keep=True)


def diff(file: PolicyFile, source: str, prune: bool = False) -> Result:
    """What `apply` would change: it is done, and undone. Raises PolicyFileError where apply would."""
    return _run(file, source, prune, keep=False)


def _run(file: PolicyFile, source: str, prune: bool, keep: bool) -> Result:
    name = f"policy file {source}"[:150]
    try:
        with acting(ACTOR, name, name):
            result = _Applier(file, Actor(ACTOR, name)).run(prune)
            if not keep:
                transaction.set_rollback(True)
    except DatabaseError as error:
        subjects.clear()
        constraint = getattr(getattr(error.__cause__, "diag", None), "constraint_name", None)
        if constraint == "scope_implies_no_cycle":
            raise PolicyFileError("scopes", "what they imply forms a cycle") from None
        raise PolicyFileError("", f"the database refuses it: {constraint or type(error).__name__}") from error
    except BaseException:
        subjects.clear()
        raise
    if not keep:
        subjects.clear()  # a user whom only the undone transaction knew
    return result


class _Applier:
    """One run. Each section is written before those that name its members."""

    def __init__(self, file: PolicyFile, actor: Actor) -> None:
        self.file, self.actor, self.result = file, actor, Result()

    def run(self, prune: bool) -> Result:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('muniment.policyfile', 0))")
        self._issuers()
        self._scopes()
        self._backends()
        self._clients()
        self._tools()
        Backends(self.file, self.note, self.result.notices).apply()
        Grants(self.file, self.actor, self.note, self.result.notices).apply(prune)
        Limits(self.file, self.actor, self.note).apply(prune)
        if prune:
            self._prune()
        check_one_to_ask()
        return self.result

    def note(self, action: str, kind: str, name: object, detail: str = "") -> None:
        """Add a change to the result."""
        self.result.changes.append(Change(action, kind, str(name), detail))

    # --- the sections -------------------------------------------------------------------------------------

    def _issuers(self) -> None:
        known = {row.issuer: row for row in Issuer.objects.select_for_update()}
        for position, entry in enumerate(self.file.issuers or []):
            values = {
                name: getattr(entry, name)
                for name in (
                    "algorithms",
                    "jwks_uri",
                    "tenant_claim",
                    "roles_claim",
                    "leeway",
                    "max_lifetime",
                )
            }
            values["allowed_networks"] = entry.allowed_networks
            row = known.get(entry.issuer) or Issuer(issuer=entry.issuer)
            values |= self._switch(row, "enabled", entry.enabled, True, entry.issuer)
            self._write(row, entry.issuer, values)
            apply_claims(row, entry.claims, self.note, self.result.notices)
            apply_introspection(f"issuers[{position}].introspection", row, entry.introspection, self.note)
            apply_binding(row, entry.binding, self.note)

    def _scopes(self) -> None:
        entries = self.file.scopes or []
        known = {row.name: row for row in Scope.objects.select_for_update()}
        for entry in entries:
            row = known.setdefault(entry.name, Scope(name=entry.name))
            values = {"sensitive": entry.sensitive}
            self._write(row, entry.name, values | _given("description", entry.description))
            self._pin(row, entry.pinned)
        edges = [(known[e.name], self._implied(f"scopes[{i}]", e, known)) for i, e in enumerate(entries)]
        # First all that go, then all that come: an implication may be turned round.
        for row, wanted in edges:
            self._unlink(row, row.implies, wanted, "implies")
        for row, wanted in edges:
            self._link(row, row.implies, wanted, "implies")

    def _pin(self, row: Scope, wanted: bool) -> None:
        found = PinnedScope.objects.filter(scope=row).first()
        if wanted and found is None:
            PinnedScope.objects.create(scope=row)
            self.note("update", "scope", row.name, "pinned")
        elif found is not None and not wanted:
            found.delete()
            self.note("update", "scope", row.name, "no longer pinned")

    def _implied(self, path: str, entry: ScopeEntry, known: dict[str, Scope]) -> list[Scope]:
        return [find(known, name, f"{path}.implies", "scope") for name in dict.fromkeys(entry.implies)]

    def _backends(self) -> None:
        known = {row.slug: row for row in Backend.objects.select_for_update()}
        issuers = {row.issuer: row for row in Issuer.objects.all()}
        for position, entry in enumerate(self.file.backends or []):
            row = known.get(entry.slug) or Backend(slug=entry.slug)
            values = self._switch(row, "enabled", entry.enabled, True, entry.slug)
            values |= {"name": entry.name, "audiences": entry.audiences}
            values["assertion_audiences"] = entry.assertion_audiences
            values["accepts_every_issuer"] = entry.issuers is None
            self._write(row, entry.slug, values)
            self._accept(f"backends[{position}].issuers", row, entry, issuers)

    def _accept(self, path: str, row: Backend, entry: BackendEntry, issuers: dict[str, Issuer]) -> None:
        wanted = [find(issuers, name, path, "issuer") for name in dict.fromkeys(entry.issuers or [])]
        listed = {accepted.issuer_id: accepted for accepted in row.accepted_issuers.select_related("issuer")}
        for number, accepted in listed.items():
            if number not in {issuer.pk for issuer in wanted}:
                accepted.delete()
                self.note("update", "backend", row.slug, f"no longer accepts {accepted.issuer}")
        for issuer in wanted:
            if issuer.pk not in listed:
                AcceptedIssuer.objects.create(backend=row, issuer=issuer)
                self.note("update", "backend", row.slug, f"accepts {issuer}")

    def _clients(self) -> None:
        entries = self.file.clients or []
        known = {row.slug: row for row in Client.objects.select_for_update()}
        issuers = {row.issuer: row for row in Issuer.objects.all()}
        for entry in entries:
            row = known.setdefault(entry.slug, Client(slug=entry.slug))
            values = self._switch(row, "status", entry.status, "active", entry.slug)
            self._write(row, entry.slug, values | {"name": entry.name, "kind": entry.kind})
        # First all that go, then all that come: an id may move from one client to another.
        for entry in entries:
            self._drop_ids(known[entry.slug], entry)
        for position, entry in enumerate(entries):
            self._add_ids(f"clients[{position}].oauth_client_ids", known[entry.slug], entry, issuers)

    def _drop_ids(self, row: Client, entry: ClientEntry) -> None:
        wanted = {(i.issuer, i.client_id) for i in entry.oauth_client_ids}
        for known in row.oauth_client_ids.select_related("issuer"):
            if (known.issuer.issuer, known.oauth_id) not in wanted:
                known.delete()
                self.note("update", "client", row.slug, f"is no longer {known.oauth_id} at {known.issuer}")

    def _add_ids(self, path: str, row: Client, entry: ClientEntry, issuers: dict[str, Issuer]) -> None:
        for wanted in entry.oauth_client_ids:
            issuer = find(issuers, wanted.issuer, path, "issuer")
            known = OAuthClientId.objects.filter(issuer=issuer, oauth_id=wanted.client_id).first()
            if known is None:
                OAuthClientId.objects.create(client=row, issuer=issuer, oauth_id=wanted.client_id)
                self.note("update", "client", row.slug, f"is {wanted.client_id} at {issuer}")
            elif known.client_id != row.pk:
                raise PolicyFileError(path, f"{wanted.client_id} belongs to the client {known.client.slug}")

    def _tools(self) -> None:
        backends = {row.slug: row for row in Backend.objects.all()}
        # Locked, so that what is approved here is not declared otherwise meanwhile.
        held = Tool.objects.select_for_update(of=("self",)).select_related("backend").prefetch_related("approved")
        known = {(row.backend.slug, row.name): row for row in held}
        scopes = {row.name: row for row in Scope.objects.all()}
        for position, entry in enumerate(self.file.tools or []):
            path = f"tools[{position}]"
            backend = find(backends, entry.backend, f"{path}.backend", "backend")
            wanted = [find(scopes, name, f"{path}.scopes", "scope") for name in dict.fromkeys(entry.scopes)]
            row = known.get((entry.backend, entry.name)) or Tool(backend=backend, name=entry.name)
            self._tool(row, entry, wanted)

    def _tool(self, row: Tool, entry: ToolEntry, scopes: list[Scope]) -> None:
        name, was = f"{entry.backend}/{entry.name}", row.status if row.pk else ""
        approved = entry.status if entry.status is not UNSET or row.status != "pending" else "active"
        values = self._switch(row, "status", approved, "active", name) | {"access": entry.access}
        parts = self._write(row, name, values | _given("description", entry.description))
        if self._link(row, row.scopes, scopes, "needs") | self._unlink(row, row.scopes, scopes, "needs"):
            parts = [*parts, "scopes"]
        if row.status == "active" and parts:
            approval.amend(row, self.actor.name, approval.PARTS if was != "active" else parts)
        elif row.status in ("suspended", "retired") and "status" in parts:
            approval.settle(row)

    # --- writing ------------------------------------------------------------------------------------------

    def _switch(self, row: Any, name: str, given: Any, on: Any, label: str) -> dict[str, Any]:
        """What `status` or `enabled` becomes: on for a new row, else as the file says, else as it is."""
        if given is not UNSET:
            return {name: given}
        if row.pk is None:
            return {name: on}
        if (now := getattr(row, name)) != on:
            words = now if name == "status" else "disabled"
            hint = f"{name}: {str(on).lower()}"
            self.result.notices.append(f"{_kind(row)} {label} stays {words}; say `{hint}` to change that")
        return {}

    def _write(self, row: Any, label: str, values: dict[str, Any]) -> list[str]:
        """Save a row where it is new or differs; the columns that do."""
        new = row.pk is None
        differing = [name for name, value in values.items() if new or getattr(row, name) != value]
        for name in differing:
            setattr(row, name, values[name])
        if new:
            row.save(force_insert=True)
            self.note("create", _kind(row), label)
        elif differing:
            row.save(update_fields=differing)
            self.note("update", _kind(row), label, ", ".join(differing))
        return differing

    def _link(self, row: Any, related: Any, wanted: list[Scope], verb: str) -> bool:
        if new := [scope for scope in wanted if scope not in set(related.all())]:
            related.add(*new)
            self.note("update", _kind(row), row, f"{verb} {' '.join(scope.name for scope in new)}")
        return bool(new)

    def _unlink(self, row: Any, related: Any, wanted: list[Scope], verb: str) -> bool:
        if old := [scope for scope in related.all() if scope not in wanted]:
            related.remove(*old)
            self.note("update", _kind(row), row, f"no longer {verb} {' '.join(scope.name for scope in old)}")
        return bool(old)

    # --- pruning ------------------------------------------------------------------------------------------

    def _prune(self) -> None:
        file = self.file
        if file.tools is not UNSET:
            kept = {(entry.backend, entry.name) for entry in file.tools}
            for tool in Tool.objects.exclude(status="retired").select_related("backend"):
                if (tool.backend.slug, tool.name) not in kept:
                    self._end(tool, "retire", f"{tool.backend.slug}/{tool.name}", status="retired")
        if file.clients is not UNSET:
            slugs = [entry.slug for entry in file.clients]
            for client in Client.objects.filter(status="active").exclude(slug__in=slugs):
                self._end(client, "suspend", client.slug, status="suspended")
        if file.backends is not UNSET:
            slugs = [entry.slug for entry in file.backends]
            for backend in Backend.objects.filter(enabled=True).exclude(slug__in=slugs):
                self._end(backend, "disable", backend.slug, enabled=False)
        if file.issuers is not UNSET:
            names = [entry.issuer for entry in file.issuers]
            for issuer in Issuer.objects.filter(enabled=True).exclude(issuer__in=names):
                self._end(issuer, "disable", issuer.issuer, enabled=False)
        if file.scopes is not UNSET:
            self._prune_scopes({entry.name for entry in file.scopes})

    def _end(self, row: models.Model, action: str, label: str, **values: Any) -> None:
        for name, value in values.items():
            setattr(row, name, value)
        row.save(update_fields=list(values))
        self.note(action, _kind(row), label)

    def _prune_scopes(self, kept: set[str]) -> None:
        """A tool that lost a scope would need less, and a deny grant that lost its last would deny all."""
        for scope in Scope.objects.exclude(name__in=kept):
            if scope.is_used():
                self.result.notices.append(f"scope {scope.name} stays: a tool, grant or something else names it")
            else:
                scope.delete()
                self.note("delete", "scope", scope.name)


def _kind(row: models.Model) -> str:
    return str(row._meta.verbose_name)


def _given(name: str, value: Any) -> dict[str, Any]:
    """A member that, left out of the file, is left as it is."""
    return {} if value is UNSET else {name: value}
