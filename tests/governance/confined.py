"""A scene of two tenants that share a platform: calls, users, grants, limits, requests, exports and notifications of
both, with marks in every field that is the other tenant's; and staff who are confined to one of them. What is of
`GLOBEX` must be on no page of who is confined to `ACME`.

The clients, tools and scopes are shared; alice is a user of acme, gwen of globex, sam of both."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django.contrib.auth import get_user_model
from django.test import Client as HttpClient
from django.utils import timezone

from audit import rollups
from audit.models import Export, ExportRun, Record, SavedSearch, Subject
from audit.subjects import identity_key
from clients.models import AccessRequest, Client, Grant, Issuer, Limit
from governance import staff_roles
from governance.models import Notification, StaffTenant
from tests.audit.sealers import sealed, sealer
from tests.staff import drained, signed_in
from tests.world import ISSUER, World, build, token
from tools.models import Scope, Tool

ACME, GLOBEX = "acme", "globex-mark"
MARK = "globex-mark"  # in all that only globex has
CALLS = {ACME: 3, GLOBEX: 23}  # of alice, of gwen; sam calls once in each
COLUMNS = ["time", "index", "record", "kind", "decision", "user", "client", "tool", "tenant"]


@dataclass
class Scene:
    """What is there. `records` are ids by tenant (None: of none), `uids` by name, `made` rows by tenant and kind."""

    world: World
    uids: dict[str, str] = field(default_factory=dict)
    records: dict[str | None, list[str]] = field(default_factory=dict)
    made: dict[tuple[str | None, str], Any] = field(default_factory=dict)

    @property
    def marks(self) -> list[str]:
        """What nobody may see who is confined to acme: whatever names something of globex."""
        return [MARK, self.uids["gwen"], *self.records[GLOBEX]]

    def found(self, text: str) -> list[str]:
        """Which of the marks a page has."""
        return [mark for mark in self.marks if mark in text]


def account(name: str, role: str, *tenants: str, email: str = "") -> Any:
    """A member of staff with a role, confined to tenants where some are given."""
    user = get_user_model().objects.create_user(name, email, "correct horse battery", is_staff=True)
    staff_roles.give(user, [role])
    confine(user, *tenants)
    return get_user_model().objects.get(pk=user.pk)


def confine(user: Any, *tenants: str) -> None:
    """To exactly these; to none of them: free."""
    StaffTenant.objects.filter(user=user).delete()
    StaffTenant.objects.bulk_create([StaffTenant(user=user, tenant=tenant) for tenant in tenants])


def staff(role: str, *tenants: str, name: str = "") -> HttpClient:
    """The browser of such a member of staff."""
    return signed_in(account(name or f"{role} {' '.join(tenants) or 'free'}".replace(" ", "-").lower(), role, *tenants))


def build_scene() -> Scene:
    """All of it, recorded, counted and sealed."""
    scene = Scene(build())
    Issuer.objects.update(tenant_claim="tenant", roles_claim="roles")
    _calls(scene)
    _policy(scene)
    _handed(scene)
    drained()
    while rollups.count():
        pass
    with TemporaryDirectory() as directory:
        active = sealer(Path(directory) / "seal")
        sealed(active)
        active.close()
    return scene


def _calls(scene: Scene) -> None:
    """Allowed and denied ones, with outcomes, from users of both tenants, of both at once, and of none."""
    for sub, tenant, number in (
        ("alice", ACME, CALLS[ACME]), ("sam", ACME, 1), ("gwen", GLOBEX, CALLS[GLOBEX]), ("sam", GLOBEX, 1),
        ("nemo", None, 1),
    ):  # fmt: skip
        for turn in range(number):
            record = _call(scene.world, sub, tenant, denied=turn % 3 == 1)
            scene.records.setdefault(tenant, []).append(record)
        scene.uids[sub] = Subject.objects.get(identity_key=identity_key(ISSUER, sub)).uid
    outcomes = Record.objects.filter(type="outcome", tenant=GLOBEX).values_list("id", flat=True)
    scene.records[GLOBEX] += [str(one) for one in outcomes]


def _call(world: World, sub: str, tenant: str | None, denied: bool) -> str:
    """One, whose every member names the tenant that it is of."""
    mark = tenant or "nowhere"
    claims = {"tenant": tenant, "roles": [f"role-{mark}"]} if tenant else {}
    answer = world.verify(
        "memory.capture" if denied else "memory.recall",
        token=token(sub, email=f"{sub}@{'people' if sub == 'sam' else mark}.example", **claims),
        agent={"mode": "subagent", "chain": [f"agent-{mark}"], "scopes": ["memory:read", "memory:write"]},
        request={
            "id": f"request-{mark}", "trace_id": f"trace-{mark}", "session_id": f"session-{mark}",
            "user_agent": f"agent/{mark}",
        },
        resource={"type": "memory", "id": f"resource-{mark}"},
    )  # fmt: skip
    if not denied:
        body = {"status": "ok", "resources": [{"type": "memory", "id": f"touched-{mark}"}], "count": 1}
        assert world.post(f"/v1/records/{answer['record']}/outcome", body).status_code in (200, 201)
    return str(answer["record"])


def _policy(scene: Scene) -> None:
    """A grant, a request and a limit of each, and of none."""
    client, now = Client.objects.get(slug="claude"), timezone.now()
    asker = account("asker", "Access manager")
    for tenant in (ACME, GLOBEX, None):
        mark = tenant or "nowhere"
        given: dict[str, Any] = {"client": client, "tenant": tenant, "reason": f"reason {mark}"}
        grant = Grant.objects.create(
            **given, role=f"role-{mark}", created_by=f"by {mark}", expires_at=now + timedelta(3)
        )
        grant.scopes.set(Scope.objects.filter(name="memory:read"))
        asked = AccessRequest.objects.create(
            **given, days=30, asked_by=f"staff:{asker.pk}", asked_by_name=f"asker {mark}",
            lapses_at=now + timedelta(7),
        )  # fmt: skip
        asked.scopes.set(Scope.objects.filter(name="memory:write"))
        limit = Limit.objects.create(
            per="tenant", count=1000, period="day", tenant=tenant, client=client, reason=f"reason {mark}",
            tool=Tool.objects.get(name="memory.recall"),
        )  # fmt: skip
        scene.made |= {(tenant, "grant"): grant, (tenant, "request"): asked, (tenant, "limit"): limit}
        Notification.objects.create(
            kind="request", about=f"request {asked.pk}", words=f"Request of {mark}", made_at=now,
            path=f"/admin/clients/accessrequest/{asked.pk}/change/",
        )  # fmt: skip


def _handed(scene: Scene) -> None:
    """An export with a run, and a search that is shared, by an auditor of globex."""
    owner, now = account("globex-auditor", "Auditor", GLOBEX), timezone.now().replace(microsecond=0)
    query = f"window=30d&tenant={GLOBEX}"
    export = Export.objects.create(
        name=f"Export of {MARK}", owner=f"staff:{owner.pk}", query=query, columns=COLUMNS, format="csv", created_at=now,
    )  # fmt: skip
    run = ExportRun.objects.create(
        export=export.pk, owner=export.owner, slot=now, since=now - timedelta(days=30), until=now, state="done",
        created_at=now, file=f"{MARK}.csv", records=CALLS[GLOBEX], bytes=1000, sha256="a" * 64, manifest="{}",
        asked_by=export.owner, definition={"query": query, "columns": COLUMNS, "format": "csv", "frameworks": []},
    )  # fmt: skip
    saved = SavedSearch.objects.create(owner=export.owner, name=f"Search of {MARK}", query=query, shared=True)
    scene.made |= {(GLOBEX, "export"): export, (GLOBEX, "run"): run, (GLOBEX, "search"): saved}
