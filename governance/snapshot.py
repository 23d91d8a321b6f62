"""The policy as one process sees it: loaded in one REPEATABLE READ transaction, named by its version and the
SHA-256 of its canonical form (DESIGN.md section 5, Fresh by construction).

Nothing here expires: the recording transaction refuses what was decided from an older version, and the caller
loads anew.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from audit.protection import token_digest
from clients import jwks
from clients.claims import Identity
from clients.jwks import STANDARD_CLAIMS, ClaimRules, IntrospectionPolicy, IssuerPolicy
from governance.decision import ClientPolicy, GrantPolicy, LimitPolicy, Policy, ToolPolicy
from muniment.policy import digest_of
from tools.credentials import Credential, KnownKey, check
from tools.routes import Route, Routes

Row = dict[str, Any]
MAX_TOKENS = 50_000
PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
NO_ROUTES = Routes()
FRESHNESS_LOOK = 15.0  # seconds between looks at when keys were fetched


@dataclass(frozen=True, slots=True)
class BackendPolicy:
    """A backend, with the issuers it accepts by their exact name."""

    id: int
    slug: str
    audiences: frozenset[str]
    first_audience: str
    assertion_audiences: frozenset[str]
    issuers: dict[str, IssuerPolicy]
    may_search: bool = False
    enforces_mcp_name: bool = False
    routes: Routes = NO_ROUTES


@dataclass(slots=True)
class Snapshot:
    """One version of the policy, and the tokens that were verified under it. `tokens` maps (backend id, SHA-256
    of the token) to who it speaks of; it lives and dies with the snapshot, and so with the keys."""

    version: int
    digest: str
    policy: Policy
    backends: dict[int, BackendPolicy]
    keys: dict[str, KnownKey]
    keys_fetched: dict[int, datetime | None]
    tokens: dict[tuple[int, bytes], Identity] = field(default_factory=dict)

    def authenticate(self, credential: Credential | None, now: float) -> BackendPolicy | None:
        """The enabled backend whose key this is, or None."""
        known = self.keys.get(credential.key_id) if credential else None
        if not check(credential, known, now) or known is None:
            return None
        return self.backends.get(known.backend_id)

    def knows(self, backend_id: int, token: str | None) -> bool:
        """Whether this token was verified for this backend under this policy, and is good by itself: one that is bound
        may have been stolen by somebody who cannot prove anything, and whose calls are to be bounded."""
        identity = None if token is None else self.tokens.get((backend_id, token_digest(token)))
        return identity is not None and identity.bound is None

    def remember(self, key: tuple[int, bytes], identity: Identity) -> None:
        """Keep a verified token's identity; bounded."""
        if len(self.tokens) >= MAX_TOKENS:
            self.tokens.clear()
        self.tokens[key] = identity

    def forget(self, backend_id: int, digest: bytes | None) -> None:
        """A token was refused: it expired, or its user was signed out. From now on it has no more room than any other
        that fails."""
        self.tokens.pop((backend_id, digest or b""), None)


def load() -> Snapshot:
    """Read the whole policy at one moment."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        cursor.execute("SELECT policy FROM audit_head")
        version = cursor.fetchone()[0]
        cursor.execute("SELECT table_name, content::text FROM muniment_policy_rows()")
        tables: dict[str, list[Row]] = defaultdict(list)
        for table, content in cursor.fetchall():
            tables[table].append(json.loads(content))
        return build(version, tables, _unlogged(cursor))


@dataclass(frozen=True, slots=True)
class Unlogged:
    """What deciding needs and the log does not carry but as digests: by row id, or by key id for secrets."""

    secrets: dict[str, bytes]
    client_names: dict[int, str]
    jwks: dict[int, dict[str, Any] | None]
    fetched_at: dict[int, datetime | None]
    introspection_secrets: dict[int, bytes | None] = field(default_factory=dict)


def _unlogged(cursor: Any) -> Unlogged:
    cursor.execute("SELECT key_id, digest FROM tools_backendkey")
    secrets = {key_id: bytes(digest) for key_id, digest in cursor.fetchall()}
    cursor.execute("SELECT id, name FROM clients_client")
    names = dict(cursor.fetchall())
    cursor.execute("SELECT issuer_id, jwks::text, fetched_at FROM clients_keyset")
    rows = cursor.fetchall()
    documents = {issuer: json.loads(text) if text else None for issuer, text, _ in rows}
    cursor.execute("SELECT issuer_id, secret FROM clients_introspection")
    protected = {issuer: None if secret is None else bytes(secret) for issuer, secret in cursor.fetchall()}
    return Unlogged(secrets, names, documents, {issuer: at for issuer, _, at in rows}, protected)


def build(version: int, tables: dict[str, list[Row]], unlogged: Unlogged) -> Snapshot:
    """A snapshot from the rows as the log carries them, and what the log must not carry."""
    return Snapshot(
        version=version,
        digest=digest_of(tables),
        policy=_policy(tables, unlogged.client_names),
        backends=_backends(tables, _issuers(tables, unlogged)),
        keys={row["key_id"]: _key(row, unlogged.secrets[row["key_id"]]) for row in tables["tools_backendkey"]},
        keys_fetched=unlogged.fetched_at,
    )


def _key(row: Row, secret: bytes) -> KnownKey:
    return KnownKey(
        row["key_id"], row["backend_id"], secret, _seconds(row["expires_at"]), row["revoked_at"] is not None
    )


def _seconds(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()


def _issuers(tables: dict[str, list[Row]], unlogged: Unlogged) -> dict[int, IssuerPolicy]:
    mappings, bindings, introspections = (
        {row["issuer_id"]: row for row in tables[name]}
        for name in ("clients_claimmapping", "clients_issuerbinding", "clients_introspection")
    )
    return {
        row["id"]: _issuer(
            row, unlogged, mappings.get(row["id"]), bindings.get(row["id"]), introspections.get(row["id"])
        )
        for row in tables["clients_issuer"]
        # The demo's issuer, which gives a token to anybody, must not be believed in production.
        if row["enabled"] and (settings.MUNIMENT_DEMO or not row["issuer"].startswith("http://"))
    }


def _issuer(
    row: Row, unlogged: Unlogged, mapping: Row | None, binding: Row | None, introspection: Row | None
) -> IssuerPolicy:
    document = unlogged.jwks.get(row["id"])
    return IssuerPolicy(
        id=row["id"],
        issuer=row["issuer"],
        algorithms=frozenset(row["algorithms"]),
        leeway=row["leeway"],
        max_lifetime=row["max_lifetime"],
        tenant_claim=row["tenant_claim"] or None,
        roles_claim=row["roles_claim"] or None,
        keys=() if document is None else jwks.parse(document),
        fetched=document is not None,
        claims=STANDARD_CLAIMS if mapping is None else _claims(mapping),
        introspection=None if introspection is None else _introspection(introspection, row, unlogged),
        require_binding=binding["require"] if binding else "",
        dpop_nonce=bool(binding and binding["dpop_nonce"]),
    )


def _claims(row: Row) -> ClaimRules:
    return ClaimRules(
        row["subject_claim"], row["email_claim"], tuple(row["scope_claims"]), tuple(row["client_id_claims"])
    )


def _introspection(row: Row, issuer: Row, unlogged: Unlogged) -> IntrospectionPolicy:
    return IntrospectionPolicy(
        endpoint=row["endpoint"],
        method=row["method"],
        client_id=row["client_id"],
        secret=unlogged.introspection_secrets.get(issuer["id"]),
        holder=f"introspection:{issuer['id']}",
        signed=row["signed"],
        cache_seconds=row["cache_seconds"],
        allowed_networks=tuple(issuer["allowed_networks"]),
    )


def _backends(tables: dict[str, list[Row]], issuers: dict[int, IssuerPolicy]) -> dict[int, BackendPolicy]:
    accepted: dict[int, list[int]] = defaultdict(list)
    for row in tables["clients_acceptedissuer"]:
        accepted[row["backend_id"]].append(row["issuer_id"])
    marks = {(row["backend_id"], row["mark"]) for row in tables["tools_backendmark"]}
    routes: dict[int, list[Route]] = defaultdict(list)
    for row in tables["tools_route"]:
        routes[row["backend_id"]].append(Route.of(row["path"], row["methods"], row["tools"]))
    return {
        row["id"]: BackendPolicy(
            id=row["id"],
            slug=row["slug"],
            audiences=frozenset(filter(None, row["audiences"])),
            first_audience=next(filter(None, row["audiences"]), ""),
            assertion_audiences=frozenset(row["assertion_audiences"]),
            issuers={
                policy.issuer: policy
                for number, policy in issuers.items()
                if row["accepts_every_issuer"] or number in accepted[row["id"]]
            },
            may_search=(row["id"], "may_search") in marks,
            enforces_mcp_name=(row["id"], "enforces_mcp_name") in marks,
            routes=Routes(routes[row["id"]]),
        )
        for row in tables["tools_backend"]
        if row["enabled"]
    }


def _policy(tables: dict[str, list[Row]], client_names: dict[int, str]) -> Policy:
    names = {row["id"]: row["name"] for row in tables["tools_scope"]}
    sensitive = {row["name"] for row in tables["tools_scope"] if row["sensitive"]}
    issuers = {row["id"]: row["issuer"] for row in tables["clients_issuer"]}
    clients = {
        row["id"]: ClientPolicy(row["id"], row["slug"], client_names[row["id"]], row["status"])
        for row in tables["clients_client"]
    }
    scopes_of_tool = _related(tables["tools_tool_scopes"], "tool_id", names)
    grants: dict[int | None, list[GrantPolicy]] = defaultdict(list)
    scopes_of_grant = _related(tables["clients_grant_scopes"], "grant_id", names)
    for row in tables["clients_grant"]:
        if row["revoked_at"] is None:
            grants[row["client_id"]].append(_grant(row, frozenset(scopes_of_grant[row["id"]])))
    return Policy(
        clients={
            (issuers[row["issuer_id"]], row["oauth_id"]): clients[row["client_id"]]
            for row in tables["clients_oauthclientid"]
        },
        tools={
            (row["backend_id"], row["name"]): _tool(row, tuple(sorted(scopes_of_tool[row["id"]])), sensitive)
            for row in tables["tools_tool"]
        },
        grants_of_client={client: tuple(found) for client, found in grants.items()},
        implied=_implications(names, tables["tools_scope_implies"]),
        limits=tuple(_limit(row) for row in tables["clients_limit"]),
    )


def _related(rows: Iterable[Row], owner: str, names: dict[int, str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        found[row[owner]].append(names[row["scope_id"]])
    return found


def _tool(row: Row, scopes: tuple[str, ...], sensitive: set[str]) -> ToolPolicy:
    return ToolPolicy(
        row["id"],
        row["name"],
        row["access"],
        row["status"],
        scopes,
        any(scope in sensitive for scope in scopes),
    )


def _grant(row: Row, scopes: frozenset[str]) -> GrantPolicy:
    return GrantPolicy(
        id=row["id"],
        effect=row["effect"],
        client_id=row["client_id"],
        scopes=scopes,
        subject=row["subject_id"],
        role=row["role"] or None,
        tenant=row["tenant"] or None,
        tool_id=row["tool_id"],
        modes=frozenset(row["modes"]),
        starts_at=_seconds(row["starts_at"]),
        expires_at=_seconds(row["expires_at"]),
    )


def _limit(row: Row) -> LimitPolicy:
    return LimitPolicy(
        id=row["id"],
        per=row["per"],
        count=row["count"],
        seconds=PERIODS[row["period"]],
        burst=row["burst"] or row["count"],
        client_id=row["client_id"],
        tool_id=row["tool_id"],
        tenant=row["tenant"] or None,
        modes=frozenset(row["modes"]),
        on_outage=row["on_outage"],
    )


def _implications(names: dict[int, str], edges: Iterable[Row]) -> dict[str, frozenset[str]]:
    """Each scope with all that it implies, transitively; ends even on a cycle."""
    direct: dict[str, set[str]] = {name: set() for name in names.values()}
    for row in edges:
        direct[names[row["from_scope_id"]]].add(names[row["to_scope_id"]])
    closures = {}
    for name in direct:
        found, waiting = {name}, [name]
        while waiting:
            new = direct[waiting.pop()] - found
            found |= new
            waiting += new
        closures[name] = frozenset(found)
    return closures


class Snapshots:
    """The current snapshot of this process."""

    def __init__(self) -> None:
        self._current: Snapshot | None = None
        self._loading = Lock()
        self._looked_at = 0.0

    def current(self) -> Snapshot:
        """The newest snapshot that this process has; what it decides is refused if the policy has moved on."""
        return self._current or self._instead_of(None)

    def at_head(self) -> Snapshot:
        """The snapshot of the version that the database is at now: one small query, and a load if it moved."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT policy FROM audit_head")
            version = cursor.fetchone()[0]
        current = self.current()
        # Also when the database is behind, as after a failover that lost the newest changes.
        return current if current.version == version else self._instead_of(current)

    def _instead_of(self, known: Snapshot | None) -> Snapshot:
        """Load anew, unless another thread has done so meanwhile. One load at a time."""
        with self._loading:
            if self._current is known or self._current is None:
                self._current = load()
            return self._current

    def keys_are_fresh(self, snapshot: Snapshot, issuer_id: int, now: float) -> bool:
        """Whether the issuer's keys were fetched within the bound. The times are no policy, so they are read
        again, rarely, once they look old."""
        bound = settings.MUNIMENT_JWKS_MAX_STALE
        at = snapshot.keys_fetched.get(issuer_id)
        if at is not None and now - at.timestamp() < bound / 2:
            return True
        if time.monotonic() - self._looked_at > FRESHNESS_LOOK or at is None:
            self._looked_at = time.monotonic()
            with connection.cursor() as cursor:
                cursor.execute("SELECT issuer_id, fetched_at FROM clients_keyset")
                snapshot.keys_fetched = dict(cursor.fetchall())
            at = snapshot.keys_fetched.get(issuer_id)
        return at is not None and now - at.timestamp() < bound

    def clear(self) -> None:
        """Forget it; for tests."""
        self._current = None


snapshots = Snapshots()
