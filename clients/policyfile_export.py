"""The policy as a file that `apply` accepts and finds nothing to change in. Secrets are never in it; users are
only where they are asked for."""

from typing import Any

import yaml
from django.db.models import QuerySet

from audit import subjects
from clients import grants
from clients.models import Client, Grant, Issuer, Limit
from tools.models import Backend, Route, Scope, Tool

Entry = dict[str, Any]
Sections = dict[str, list[Entry]]
LEFT_OUT = (
    "# {count} active grant(s) that name a user are left out; export --subjects has them. To apply this file with\n"
    "# --prune would revoke them.\n"
)
UNREADABLE = "# {count} active grant(s) of erased users are left out.\n"


def export(with_subjects: bool = False) -> str:
    """The YAML text. With `with_subjects` grants that name a user say which: that is personal data."""
    sections: Sections = {
        "issuers": [_issuer(row) for row in Issuer.objects.select_related("mapping", "binding", "introspection")],
        "backends": [_backend(row) for row in _backends()],
        "clients": [_client(row) for row in Client.objects.prefetch_related("oauth_client_ids__issuer")],
        "scopes": [_scope(row) for row in _scopes()],
        "tools": [_tool(row) for row in Tool.objects.select_related("backend").prefetch_related("scopes")],
    }
    active = grants.active().select_related("client", "subject", "tool__backend").prefetch_related("scopes")
    named = list(active.exclude(subject=None).order_by("pk"))
    sections["grants"] = [_grant(grant) for grant in active.filter(subject=None).order_by("pk")]
    sections["limits"] = [_limit(row) for row in Limit.objects.select_related("client", "tool__backend").order_by("pk")]
    if not with_subjects:
        return (LEFT_OUT.format(count=len(named)) if named else "") + _text(sections)
    whole = [(grant, whom) for grant in named if (whom := _subject(grant)) is not None]
    sections["grants"] += [_grant(grant) | {"subject": whom} for grant, whom in whole]
    erased = len(named) - len(whole)
    return (UNREADABLE.format(count=erased) if erased else "") + _text(sections)


def _text(sections: Sections) -> str:
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=100)


def _unless(entry: Entry, **defaults: Any) -> Entry:
    """The entry without the members that have their default."""
    return {name: value for name, value in entry.items() if name not in defaults or value != defaults[name]}


def _issuer(row: Issuer) -> Entry:
    entry = {
        "issuer": row.issuer,
        "algorithms": row.algorithms,
        "tenant_claim": row.tenant_claim or None,
        "roles_claim": row.roles_claim or None,
        "claims": _claims(row),
        "introspection": _introspection(row),
        "binding": _binding(row),
        "jwks_uri": row.jwks_uri or None,
        "leeway": row.leeway,
        "max_lifetime": row.max_lifetime,
        "allowed_networks": row.allowed_networks,
        "enabled": row.enabled,
    }
    parts: Entry = {"claims": None, "introspection": None, "binding": None}
    return _unless(entry, **parts, leeway=30, max_lifetime=86400, allowed_networks=[], enabled=True)


def _binding(row: Issuer) -> Entry | None:
    binding = getattr(row, "binding", None)
    return None if binding is None else {"require": binding.require or None, "dpop_nonce": binding.dpop_nonce}


def _introspection(row: Issuer) -> Entry | None:
    """Without the secret; applied where one is stored, that one stays."""
    asking = getattr(row, "introspection", None)
    if asking is None:
        return None
    entry = {name: getattr(asking, name) for name in ("endpoint", "client_id", "method", "signed", "cache_seconds")}
    return _unless(entry, method="client_secret_basic", signed=False, cache_seconds=60)


def _claims(row: Issuer) -> Entry | None:
    mapping = getattr(row, "mapping", None)
    if mapping is None:
        return None
    entry = {
        "subject": mapping.subject_claim,
        "email": mapping.email_claim,
        "scopes": mapping.scope_claims,
        "client_id": mapping.client_id_claims,
    }
    return _unless(entry, subject="", email="", scopes=[], client_id=[])


def _backends() -> QuerySet[Backend]:
    return Backend.objects.prefetch_related("accepted_issuers__issuer", "marks", "routes")


def _backend(row: Backend) -> Entry:
    marks = {found.mark for found in row.marks.all()}
    listed = sorted(accepted.issuer.issuer for accepted in row.accepted_issuers.all())
    entry = {
        "slug": row.slug,
        "name": row.name,
        "audiences": row.audiences,
        "assertion_audiences": row.assertion_audiences,
        "issuers": None if row.accepts_every_issuer else listed,
        "may_search": "may_search" in marks,
        "enforces_mcp_name": "enforces_mcp_name" in marks,
        "routes": [_route(route) for route in row.routes.all()],
        "enabled": row.enabled,
    }
    return _unless(
        entry, assertion_audiences=[], may_search=False, enforces_mcp_name=False, routes=[], enabled=True
    )  # fmt: skip


def _route(row: Route) -> Entry:
    return _unless({"path": row.path, "methods": sorted(set(row.methods)), "tools": row.tools}, methods=[])


def _client(row: Client) -> Entry:
    ids = sorted((known.issuer.issuer, known.oauth_id) for known in row.oauth_client_ids.all())
    entry = {
        "slug": row.slug,
        "name": row.name,
        "kind": row.kind,
        "oauth_client_ids": [{"issuer": issuer, "client_id": oauth_id} for issuer, oauth_id in ids],
        "status": row.status,
    }
    return _unless(entry, status="active")


def _scopes() -> QuerySet[Scope]:
    return Scope.objects.select_related("pin").prefetch_related("implies")


def _scope(row: Scope) -> Entry:
    entry = {
        "name": row.name,
        "implies": sorted(scope.name for scope in row.implies.all()),
        "sensitive": row.sensitive,
        "pinned": hasattr(row, "pin"),
        "description": row.description,
    }
    return _unless(entry, implies=[], sensitive=False, pinned=False, description="")


def _tool(row: Tool) -> Entry:
    entry = {
        "backend": row.backend.slug,
        "name": row.name,
        "access": row.access,
        "scopes": sorted(scope.name for scope in row.scopes.all()),
        "description": row.description,
        "status": row.status,
    }
    return _unless(entry, description="", status="active")


def _grant(row: Grant) -> Entry:
    tool = row.tool
    entry = {
        "client": row.client.slug if row.client else None,
        "scopes": sorted(scope.name for scope in row.scopes.all()),
        "effect": row.effect,
        "role": row.role or None,
        "tenant": row.tenant or None,
        "tool": {"backend": tool.backend.slug, "name": tool.name} if tool else None,
        "modes": sorted(set(row.modes)),
        "reason": row.reason,
        "starts_at": row.starts_at,
        "expires_at": row.expires_at,
    }
    unset: Entry = {"role": None, "tenant": None, "tool": None, "modes": [], "starts_at": None, "expires_at": None}
    return _unless(entry, effect="allow", **unset)


def _limit(row: Limit) -> Entry:
    entry = {
        "per": row.per,
        "rate": f"{row.count}/{row.period}",
        "burst": row.burst,
        "client": row.client.slug if row.client else None,
        "tool": {"backend": row.tool.backend.slug, "name": row.tool.name} if row.tool else None,
        "tenant": row.tenant or None,
        "modes": sorted(set(row.modes)),
        "on_outage": row.on_outage,
        "reason": row.reason,
    }
    return _unless(entry, burst=None, client=None, tool=None, tenant=None, modes=[], on_outage="access")


def _subject(row: Grant) -> Entry | None:
    """The user as their issuer knows them; None where that can no longer be read."""
    if row.subject is None or (sub := subjects.read(row.subject, "sub")) is None:
        return None
    return {"issuer": row.subject.issuer, "sub": sub}
