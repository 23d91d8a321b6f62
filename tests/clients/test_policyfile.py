"""Policy files: strict, idempotent, all or nothing, recorded; what export writes, apply finds nothing to change in."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import CommandError, call_command
from django.utils import timezone
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from audit.models import Head, Outbox, Subject
from audit.subjects import resolve
from clients import grants, policyfile, policyfile_export
from clients.grants import Actor
from clients.models import AcceptedIssuer, Client, Grant, Issuer, OAuthClientId
from clients.policyfile import PolicyFileError, parse
from clients.policyfile_apply import apply, diff
from tests import world
from tests.reset import reset
from tools.models import Backend, Scope, Tool

ID = "https://id.example/"
WHOLE = """
issuers:  [{issuer: "https://id.example/", algorithms: [RS256, ES256], tenant_claim: org_id, roles_claim: roles,
            jwks_uri: null}]
backends: [{slug: inner, name: Inner, audiences: ["https://inner.example/mcp"], issuers: null}]
clients:  [{slug: claude, name: Claude, kind: mcp,
            oauth_client_ids: [{issuer: "https://id.example/", client_id: claude-app}]}]
scopes:   [{name: "memory:read"}, {name: "memory:write", implies: ["memory:read"], sensitive: false}]
tools:    [{backend: inner, name: memory.recall, access: read, scopes: ["memory:read"]}]
grants:
  - {client: claude, scopes: ["memory:read"], reason: "launch review", expires_at: null}
  - {client: null, effect: deny, subject: {issuer: "https://id.example/", sub: mallory}, reason: abuse}
  - {client: claude, effect: flag, scopes: ["memory:write"], role: doctor, tenant: acme, modes: [api],
     tool: {backend: inner, name: memory.recall}, reason: trial, starts_at: 2900-01-01, expires_at: 2999-12-31}
limits: []
"""


def lines(text: str, prune: bool = False) -> list[str]:
    return [str(change) for change in apply(parse(text), "test.yaml", prune).changes]


@pytest.fixture
def whole(db: None) -> None:
    lines(WHOLE)


def test_the_design_s_example_makes_everything_it_names(whole: None) -> None:
    issuer, backend, tool = Issuer.objects.get(), Backend.objects.get(), Tool.objects.get()
    assert (issuer.tenant_claim, issuer.roles_claim, issuer.enabled) == ("org_id", "roles", True)
    assert backend.accepts_every_issuer and backend.audiences == ["https://inner.example/mcp"]
    assert OAuthClientId.objects.get().client.slug == "claude"
    assert (tool.status, [s.name for s in tool.scopes.all()]) == ("active", ["memory:read"])
    assert [s.name for s in Scope.objects.get(name="memory:write").implies.all()] == ["memory:read"]
    allow, deny, flag = Grant.objects.order_by("pk")
    assert (allow.effect, allow.reason, allow.client) == ("allow", "launch review", Client.objects.get())
    assert deny.subject_id == resolve(ID, "mallory") and deny.scopes.count() == 0
    assert (flag.role, flag.tenant, flag.modes, flag.tool) == ("doctor", "acme", ["api"], tool)
    assert flag.expires_at == datetime(2999, 12, 31, tzinfo=UTC)


def test_it_is_one_version_of_one_actor_and_a_second_time_changes_nothing(whole: None) -> None:
    assert set(Outbox.objects.values_list("actor", "version")) == {("command:policy", 1)}
    assert lines(WHOLE) == [] and lines(WHOLE, prune=True) == []
    assert Head.objects.get().policy == 1


def test_diff_says_what_apply_would_do_and_does_nothing(whole: None) -> None:
    text = WHOLE.replace("name: Claude", "name: Claude 2").replace("mallory", "trudy")
    before = Head.objects.get().policy
    said = [str(change) for change in diff(parse(text), "x").changes]
    assert said[0] == "update client claude: name" and said[1].startswith("create grant")
    assert Head.objects.get().policy == before and not Outbox.objects.filter(version=None).exists()
    assert Subject.objects.count() == 1, "trudy was met in a transaction that was undone"
    assert [line.split()[:2] for line in lines(text)] == [line.split()[:2] for line in said]
    assert Subject.objects.count() == 2


def test_a_file_updates_what_it_names(whole: None) -> None:
    text = (
        WHOLE.replace("tenant_claim: org_id, ", "leeway: 5, ")
        .replace("issuers: null", 'issuers: ["https://id.example/"]')
        .replace("client_id: claude-app", "client_id: claude-app-2")
        .replace('{name: "memory:read"}, {name: "memory:write", implies: ["memory:read"]',
                 '{name: "memory:read", implies: ["memory:write"]}, {name: "memory:write"')
        .replace('access: read, scopes: ["memory:read"]', 'access: write, scopes: ["memory:write"]')
    )  # fmt: skip
    assert sorted(lines(text)) == sorted([
        "update issuer https://id.example/: tenant_claim, leeway",
        "update scope memory:write: no longer implies memory:read",
        "update scope memory:read: implies memory:write",
        "update backend inner: accepts_every_issuer",
        "update backend inner: accepts https://id.example/",
        "update client claude: is no longer claude-app at https://id.example/",
        "update client claude: is claude-app-2 at https://id.example/",
        "update tool inner/memory.recall: access",
        "update tool memory.recall: needs memory:write",
        "update tool memory.recall: no longer needs memory:read",
    ])  # fmt: skip
    assert AcceptedIssuer.objects.count() == 1 and Issuer.objects.get().tenant_claim is None
    assert lines(text) == []


def test_a_kill_switch_is_not_undone_unless_the_file_says_so(whole: None) -> None:
    Client.objects.update(status="suspended")
    Tool.objects.update(status="suspended")
    Issuer.objects.update(enabled=False)
    result = apply(parse(WHOLE), "x")
    assert result.changes == [] and len(result.notices) == 3
    assert "client claude stays suspended; say `status: active`" in " ".join(result.notices)
    assert lines(WHOLE.replace("kind: mcp", "kind: mcp, status: active")) == ["update client claude: status"]


def test_a_declared_tool_is_approved_by_being_in_the_file(whole: None) -> None:
    Tool.objects.update(status="pending", description="as declared")
    assert lines(WHOLE) == ["update tool inner/memory.recall: status"]
    assert Tool.objects.get().description == "as declared"


def test_a_grant_s_end_moves_and_its_reason_is_history(whole: None) -> None:
    first = Grant.objects.order_by("pk")[0]
    text = WHOLE.replace('"launch review", expires_at: null', '"a year more", expires_at: 2999-01-01')
    assert lines(text) == [f"extend grant {first.pk}: until 2999-01-01 00:00:00+00:00"]
    first.refresh_from_db()
    assert first.reason == "launch review" and first.expires_at == datetime(2999, 1, 1, tzinfo=UTC)
    assert lines(text) == []


def test_another_start_is_another_grant(whole: None) -> None:
    assert [line.split()[0] for line in lines(WHOLE.replace("2900-01-01", "2901-01-01"))] == ["revoke", "create"]


def test_a_grant_that_the_file_lets_expire_ends(whole: None) -> None:
    text = WHOLE.replace('"launch review", expires_at: null', '"launch review", expires_at: 2020-01-01')
    assert len(lines(text)) == 1 and Grant.objects.order_by("pk")[0].revoked_at is not None
    result = apply(parse(text), "x")
    assert result.changes == [] and "expired on 2020-01-01" in result.notices[0]


def test_what_the_file_leaves_out_stays_unless_pruned(whole: None) -> None:
    text = "issuers: []\nbackends: []\nclients: []\nscopes: [{name: spare}]\ntools: []\ngrants: []\n"
    assert lines(text) == ["create scope spare"]
    result = apply(parse(text), "x", prune=True)
    said = [str(change) for change in result.changes]
    assert [line.split()[0] for line in said] == ["revoke"] * 3 + ["retire", "suspend", "disable", "disable"]
    assert len(result.notices) == 2, "scopes that something names stay"
    assert Grant.objects.filter(revoked_at=None).count() == 0 and Grant.objects.count() == 3
    assert (Tool.objects.get().status, Client.objects.get().status) == ("retired", "suspended")
    assert not Backend.objects.get().enabled and not Issuer.objects.get().enabled
    assert apply(parse(text), "x", prune=True).changes == []


def test_pruning_leaves_sections_alone_that_the_file_does_not_have(whole: None) -> None:
    assert lines("grants: []", prune=True) and Client.objects.get().status == "active"
    assert lines("scopes: [{name: spare}]") == ["create scope spare"]
    assert lines('scopes: [{name: "memory:read"}]', prune=True)[-1] == "delete scope spare"


WRONG = [
    ("clients: [{slug: claude, nmae: x}]", "clients[0]: has unknown field 'nmae'"),
    ("clients: [{slug: claude}]", "clients[0]: misses required field 'name'"),
    ("grants: [{reason: x, scopes: [a]}]", "grants[0]: misses required field 'client'"),
    ("grants: [{client: null, reason: x, efect: deny}]", "grants[0]: has unknown field 'efect'"),
    ("grants: [{client: null, reason: x, scopes: a}]", "grants[0].scopes: Expected 'array', got 'str'"),
    ("grants: [{client: null, reason: x, tenant: no}]", "grants[0].tenant: Expected 'str | null', got 'bool'"),
    ("grants: [{client: null, client: a, reason: x}]", "line 1: 'client' is given twice"),
    ("grants: [{client: null, reason: x, expires_at: 2999-01-01 10:00:00}]", "timezone"),
    ("limits: [{per: subject, rate: 60/fortnight}]", "limits[0].rate: must be calls and a period"),
    ("limits: [{per: nobody, rate: 60/minute}]", "limits[0].per: Invalid enum value"),
    ("limits: [{per: subject, rate: 60/minute, name: x}]", "limits[0]: has unknown field"),
    ("limits: [{rate: 60/minute}]", "limits[0]: misses required field"),
    ("limit: []", "has unknown field 'limit'"),
    ("- a", "Expected 'object', got 'array'"),
    ("a: [", "line 1: "),
    ("a: !!python/object:os.system x", "could not determine a constructor"),
    ("issuers: [{issuer: id.example}]", "issuers[0].issuer: must be an http(s) URL"),
    ("issuers: [{issuer: 'https://a', algorithms: [HS256]}]", "issuers[0].algorithms[0]: Invalid enum value"),
    ("issuers: [{issuer: 'https://a', allowed_networks: [x]}]", "issuers[0].allowed_networks[0]: is not a"),
    ("scopes: [{name: a}, {name: b}, {name: a}]", "scopes[2]: a is given twice"),
    ("scopes: [{name: a, implies: [zz]}]", "scopes[0].implies: there is no scope zz"),
    ("scopes: [{name: a, implies: [b]}, {name: b, implies: [a]}]", "scopes: what they imply forms a cycle"),
    ("tools: [{backend: outer, name: t, access: read, scopes: []}]", "tools[0].backend: there is no backend outer"),
    ("tools: [{backend: inner, name: t, access: read, scopes: [zz]}]", "tools[0].scopes: there is no scope zz"),
    ("backends: [{slug: b, name: B, audiences: [a], issuers: [zz]}]", "backends[0].issuers: there is no issuer zz"),
    (
        "clients: [{slug: c, name: C, oauth_client_ids: [{issuer: 'https://id.example/', client_id: claude-app}]}]",
        "clients[0].oauth_client_ids: claude-app belongs to the client claude",
    ),
    ("grants: [{client: zz, reason: x, scopes: ['memory:read']}]", "grants[0].client: there is no client zz"),
    ("grants: [{client: null, reason: x, scopes: [zz]}]", "grants[0]: there is no scope zz"),
    ("grants: [{client: null, reason: x}]", "grants[0]: A grant that allows needs at least one scope"),
    ("grants: [{client: null, reason: ' ', scopes: ['memory:read']}]", "grants[0]: A reason is needed."),
    (
        "grants: [{client: null, effect: deny, reason: x, tool: {backend: inner, name: zz}}]",
        "grants[0].tool: there is no tool inner/zz",
    ),
    (
        "grants: [{client: null, effect: deny, reason: x, subject: {issuer: 'https://id.example', sub: a}}]",
        "grants[0].subject.issuer: there is no issuer https://id.example",
    ),
    (
        "grants: [{client: null, effect: deny, reason: x}, {client: null, effect: deny, reason: y}]",
        "grants[1]: says the same as grants[0]",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[words[:40] for _, words in WRONG])
def test_a_wrong_file_is_one_line_with_file_and_member_and_changes_nothing(
    whole: None, tmp_path: Path, text: str, words: str
) -> None:
    before = Head.objects.get().policy, policyfile_export.export(True)
    path = tmp_path / "policy.yaml"
    # What comes before it in the file must be undone too.
    path.write_text("scopes: [{name: early}]\n" + text if "scopes:" not in text.split("[")[0] else text)
    if path.read_text().startswith("scopes: [{name: early}]\n- "):
        path.write_text(text)
    with pytest.raises(CommandError) as error:
        call_command("policy", "apply", str(path))
    assert error.value.returncode == 2
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert words.replace("line 1", "line 2" if path.read_text() != text else "line 1") in str(error.value)
    assert (Head.objects.get().policy, policyfile_export.export(True)) == before


def test_a_file_that_is_absent_too_large_or_not_text_is_refused(db: None, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    for content, words in ((None, "No such file"), (b"\xff", "UTF-8"), (b"#" * (2**20 + 1), "larger")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(PolicyFileError, match=words):
            policyfile.read(path)


def test_the_command_prints_changes_and_diff_s_exit_status_says_whether_there_are_any(db: None, tmp_path: Path) -> None:
    path, out = tmp_path / "policy.yaml", StringIO()
    path.write_text(WHOLE)
    with pytest.raises(SystemExit) as status:
        call_command("policy", "diff", str(path), stdout=out)
    assert status.value.code == 1 and "create client claude" in out.getvalue()
    assert not Client.objects.exists()
    call_command("policy", "apply", str(path), stdout=(out := StringIO()))
    assert out.getvalue().splitlines()[-1] == "12 changes"
    call_command("policy", "apply", str(path), stdout=(out := StringIO()))
    assert out.getvalue() == "nothing to change\n"
    call_command("policy", "diff", str(path), stdout=(out := StringIO()))
    assert out.getvalue() == ""
    path.write_text("scopes: [{name: another}]")
    call_command("policy", "apply", str(path), stdout=(out := StringIO()))
    assert out.getvalue().splitlines()[-1] == "1 change"


def test_an_id_moves_from_one_client_to_another(whole: None) -> None:
    text = """clients: [{slug: claude, name: Claude}, {slug: c2, name: C2,
        oauth_client_ids: [{issuer: "https://id.example/", client_id: claude-app}]}]"""
    lines(text)
    assert OAuthClientId.objects.get().client.slug == "c2"


def test_export_holds_no_secret_and_names_users_only_when_asked(db: None) -> None:
    made = world.build()
    subject = Subject.objects.get(uid=resolve(world.ISSUER, "mallory"))
    grants.create(actor=Actor("staff:1", "x"), reason="abuse", client=None, scopes=[], effect="deny", subject=subject)
    text = policyfile_export.export()
    assert "mallory" not in text and text.startswith("# 1 active grant(s) that name a user are left out")
    assert made.key.split("_")[1] not in text and subject.uid not in text and "kid" not in text
    assert apply(parse(text), "x").changes == []
    assert "mallory" in policyfile_export.export(with_subjects=True)
    assert apply(parse(policyfile_export.export(with_subjects=True)), "x", prune=True).changes == []


def test_export_leaves_revoked_and_expired_grants_out(whole: None) -> None:
    first, second, _ = Grant.objects.order_by("pk")
    grants.revoke(first, actor=Actor("staff:1", "x"), reason="over")
    Grant.objects.filter(pk=second.pk).update(expires_at=timezone.now() - timedelta(days=1))
    assert len(yaml.safe_load(policyfile_export.export(True))["grants"]) == 1


# --- the round trip ------------------------------------------------------------------------------------------

NAMES = ["a", "b-2", "c"]
text = st.text(st.characters(categories=["L", "N", "P", "S"], include_characters=" "), min_size=1, max_size=20).filter(
    str.strip
)
moments = st.datetimes(datetime(2990, 1, 1), datetime(2999, 1, 1), timezones=st.just(UTC))
some = st.lists(st.sampled_from(["s:1", "s:2", "s:3"]), unique=True, max_size=3)

_several = st.lists(st.sampled_from(["can", "access.can", "https://a.example/can"]), unique=True, max_size=3)
_claims = st.fixed_dictionaries(
    {}, optional={"subject": st.just("oid"), "email": st.just("mail"), "scopes": _several, "client_id": _several}
)


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    """A policy file of things that may be there or not, in any combination that makes sense."""
    issuers = [
        {"issuer": f"https://{name}.example/", "algorithms": draw(st.sampled_from([["ES256"], ["RS256", "EdDSA"]])),
         "tenant_claim": draw(st.none() | st.just("org.id")), "leeway": draw(st.integers(0, 300)),
         "claims": draw(st.none() | _claims), "enabled": draw(st.booleans())}
        for name in NAMES
    ]  # fmt: skip
    urls = [entry["issuer"] for entry in issuers]
    backends = [
        {"slug": name, "name": draw(text), "audiences": draw(st.lists(text, max_size=2)),
         "issuers": draw(st.none() | st.lists(st.sampled_from(urls), unique=True)), "enabled": draw(st.booleans())}
        for name in NAMES
    ]  # fmt: skip
    clients = [
        {"slug": name, "name": draw(text), "kind": draw(st.sampled_from(["mcp", "other"])),
         "oauth_client_ids": [{"issuer": draw(st.sampled_from(urls)), "client_id": f"{name}-{n}"}
                              for n in range(draw(st.integers(0, 2)))],
         "status": draw(st.sampled_from(["active", "suspended"]))}
        for name in NAMES
    ]  # fmt: skip
    scopes = [
        {"name": f"s:{n}", "implies": [f"s:{m}" for m in range(1, n) if draw(st.booleans())],
         "sensitive": draw(st.booleans()), "description": draw(text)}
        for n in (1, 2, 3)
    ]  # fmt: skip
    tools = [
        {"backend": draw(st.sampled_from(NAMES)), "name": name, "access": draw(st.sampled_from(["read", "write"])),
         "scopes": draw(some), "status": draw(st.sampled_from(["active", "pending", "suspended", "retired"]))}
        for name in ("x.y", "z")
    ]  # fmt: skip
    sections = {"issuers": issuers, "backends": backends, "clients": clients, "scopes": scopes, "tools": tools}
    return sections | {"grants": draw(st.lists(_grants(tools), max_size=5, unique_by=_key))}


def _grants(tools: list[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    refs = [{"backend": tool["backend"], "name": tool["name"]} for tool in tools]
    entry = st.fixed_dictionaries(
        {"client": st.none() | st.sampled_from(NAMES), "reason": text.map(str.strip), "scopes": some,
         "effect": st.sampled_from(["allow", "flag", "deny"]), "role": st.none() | text,
         "tool": st.none() | st.sampled_from(refs), "expires_at": st.none() | moments,
         "subject": st.none() | text.map(lambda sub: {"issuer": "https://a.example/", "sub": sub}),
         "modes": st.lists(st.sampled_from(["api", "subagent"]), unique=True)}
    )  # fmt: skip
    return entry.filter(lambda grant: grant["effect"] == "deny" or grant["scopes"] or grant["tool"])


def _key(entry: dict[str, Any]) -> str:
    parts = {name: value for name, value in entry.items() if name not in ("reason", "expires_at")}
    return repr(parts | {"scopes": sorted(entry["scopes"]), "modes": sorted(entry["modes"])})


# Not shrunk: each attempt empties the database.
@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(policies())
def test_round_trip(db: None, policy: dict[str, Any]) -> None:
    """What was applied is exported, found equal, and makes the same policy in an empty database."""
    reset()
    lines(yaml.safe_dump(policy, allow_unicode=True))
    exported = policyfile_export.export(with_subjects=True)
    assert diff(parse(exported), "x", prune=True).changes == []
    assert diff(parse(yaml.safe_dump(policy, allow_unicode=True)), "x", prune=True).changes == []
    reset()
    lines(exported)
    assert policyfile_export.export(with_subjects=True) == exported
