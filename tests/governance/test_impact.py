"""What a change of grants would do: the tools that open or close, and the week's calls, decided again by decide()."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.utils import timezone

from audit.models import Record, Subject
from audit.subjects import resolve
from audit.viewer import Viewer
from clients import grants, proposals
from clients.grants import Actor
from clients.models import Client, Grant, OAuthClientId
from clients.proposals import Proposal
from governance import impact, replay
from tests.world import ISSUER, World, build, token
from tools.models import Backend, Scope, Tool

AUDITOR = Viewer("staff:1", "vera", records=True)
OPERATOR = Actor("command:test", "")


@pytest.fixture
def world(db: None) -> World:
    return build()


def scopes(*names: str) -> tuple[Scope, ...]:
    return tuple(Scope.objects.get(name=name) for name in names)


def wanted(*names: str, **other: Any) -> Proposal:
    client = Client.objects.get(slug="claude")
    return Proposal(**{"kind": "grant", "effect": "allow", "client": client, "scopes": scopes(*names)} | other)


def told(found: impact.Impact) -> list[str]:
    return [effect.words for effect in found.turned]


def uid(sub: str) -> str:
    return resolve(ISSUER, sub)


# --- the tools that open or close ------------------------------------------------------------------------------------


def test_a_grant_opens_the_tools_that_need_its_scopes_and_says_what_stays(world: World) -> None:
    found = impact.of(wanted("memory:write"))
    assert told(found) == ["Claude may call memory.capture"]
    assert [effect.words for effect in found.same] == ["Claude may call memory.recall as before"]
    assert found.replay is None


def test_what_it_says_is_what_then_happens(world: World) -> None:
    proposal = wanted("memory:write")
    before = impact.of(proposal)
    grants.create(actor=OPERATOR, reason="x", **proposal.members())
    assert world.verify("memory.capture")["decision"] == "allow"
    after = impact.of(proposal)
    assert not after.turned and after.version > before.version and after.digest != before.digest


def test_a_block_closes_and_a_flag_marks(world: World) -> None:
    assert told(impact.of(wanted("memory:read", effect="deny"))) == ["Claude can no longer call memory.recall"]
    everything = impact.of(wanted(effect="deny", client=None))
    assert told(everything) == ["Claude can no longer call memory.recall"]
    assert [effect.words for effect in everything.same] == ["memory.capture stays refused to Claude"]
    marked = impact.of(wanted("memory:write", effect="flag"))
    assert told(marked) == [
        "Claude may call memory.capture, each call marked for review",
        "Claude may call memory.recall, each call marked for review",
    ]


def test_the_modes_in_which_a_block_stands_in_the_way_are_told_apart(world: World) -> None:
    grants.create(
        actor=OPERATOR, reason="x", client=None, scopes=scopes("memory:write"), effect="deny", modes=["background"]
    )
    found = impact.of(wanted("memory:write"))
    assert told(found) == ["Claude may call memory.capture in interactive, subagent and api mode"]
    [refused] = [effect for effect in found.same if effect.tool == "memory.capture"]
    assert (refused.modes, refused.after) == (("background",), "deny") and "Block" in refused.why
    assert not impact.of(wanted("memory:write", modes=("background",))).turned


def test_a_grant_for_one_user_or_role_is_judged_for_them(world: World) -> None:
    alice = Subject.objects.get(uid=uid("alice"))
    block = grants.create(
        actor=OPERATOR, reason="x", client=None, scopes=scopes("memory:write"), effect="deny", subject=alice
    )
    found = impact.of(wanted("memory:write", subject=alice))
    assert not found.turned and f"Block {block.pk} forbids it" in found.same[0].why
    assert told(impact.of(wanted("memory:write", role="doctor", tenant="acme"))) == ["Claude may call memory.capture"]
    Subject.objects.filter(uid=alice.uid).update(blocked_at=timezone.now())
    grants.revoke(block, actor=OPERATOR, reason="x")
    assert not impact.of(wanted("memory:write", subject=Subject.objects.get(uid=alice.uid))).turned


def test_every_client_is_asked_for_a_grant_to_any(world: World) -> None:
    other = Client.objects.create(slug="chatgpt", name="ChatGPT")
    OAuthClientId.objects.create(client=other, issuer_id=1, oauth_id="chatgpt-app")
    OAuthClientId.objects.create(client=other, issuer_id=1, oauth_id="chatgpt-app-2")
    asleep = Client.objects.create(slug="old", name="Old", status="suspended")
    OAuthClientId.objects.create(client=asleep, issuer_id=1, oauth_id="old-app")
    found = impact.of(wanted("memory:write", client=None))
    assert told(found) == [
        "ChatGPT may call memory.capture", "Claude may call memory.capture", "ChatGPT may call memory.recall",
    ]  # fmt: skip
    assert "Old is suspended" in next(effect.why for effect in found.same if effect.client == "old")


def test_tools_and_clients_that_no_grant_tells_apart_are_asked_about_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        client = Client.objects.create(slug=f"c{number}", name=f"C{number}")
        OAuthClientId.objects.create(client=client, issuer_id=1, oauth_id=f"c{number}")
        tool = Tool.objects.create(backend=world.backend, name=f"tool.{number}", access="read", status="active")
        tool.scopes.add(Scope.objects.get(name="memory:write"))
    Client.objects.filter(slug="c3").update(status="suspended")
    named = Tool.objects.get(name="tool.4")
    grants.create(actor=OPERATOR, reason="x", client=None, scopes=(), effect="deny", tool=named)
    asked = []
    real = impact.decide
    monkeypatch.setattr(impact, "decide", lambda *given: asked.append(1) or real(*given))
    found = impact.of(wanted("memory:write", client=None))
    # Kinds of tools: of memory:read, of memory:write, the named one; of clients: with grants, without, suspended.
    assert len(asked) == 3 * 3 * 2
    opened = {(effect.client, effect.tool) for effect in found.turned}
    assert ("c5", "tool.5") in opened and ("c0", "memory.recall") in opened and ("claude", "tool.0") in opened
    assert not {pair for pair in opened if pair[0] == "c3" or pair[1] == "tool.4"}
    assert len(found.turned) + len(found.same) == 7 * 8
    assert {effect.why for effect in found.refused if effect.client == "c3"} == {
        "The AI client is suspended. C3 is suspended."
    }


def test_what_is_retired_or_of_a_backend_out_of_use_is_left_out(world: World) -> None:
    Tool.objects.filter(name="memory.capture").update(status="retired")
    assert {effect.tool for effect in impact.of(wanted("memory:write")).same} == {"memory.recall"}
    Backend.objects.update(enabled=False)
    found = impact.of(wanted("memory:write"))
    assert not found.turned and not found.same


def test_revoking_and_extending_show_what_relies_on_the_grant(world: World) -> None:
    grant = world.grant
    assert told(impact.of(proposals.to_revoke(grant))) == ["Claude can no longer call memory.recall"]
    assert told(impact.of(proposals.to_extend(grant, None))) == ["Claude can go on calling memory.recall"]
    again = grants.create(actor=OPERATOR, reason="x", client=None, scopes=scopes("memory:write"))
    assert not impact.of(proposals.to_revoke(grant)).turned, "another gives the same"
    Grant.objects.filter(pk=again.pk).update(expires_at=timezone.now() - timedelta(days=1))
    again.refresh_from_db()
    assert not impact.of(proposals.to_revoke(again)).turned, "it has ended already"
    assert told(impact.of(proposals.to_extend(again, None))) == ["Claude may call memory.capture"]


def test_extending_and_revoking_a_block_show_what_it_blocks(world: World) -> None:
    block = grants.create(actor=OPERATOR, reason="x", client=None, scopes=scopes("memory:read"), effect="deny")
    longer, gone = proposals.to_extend(block, None), proposals.to_revoke(block)
    assert told(impact.of(longer)) == ["memory.recall goes on being refused to Claude"]
    assert told(impact.of(gone)) == ["Claude may call memory.recall"]
    assert longer.heading() == "What it blocks for everyone"
    assert gone.heading() == "What would open again for everyone"
    later = wanted("memory:write", starts_at=timezone.now() + timedelta(days=1), tenant="acme")
    assert later.heading() == "What would change in tenant acme once it has begun"
    assert told(impact.of(later)) == ["Claude may call memory.capture"]


def test_more_pairs_than_are_asked_about_are_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not impact.of(wanted("memory:write")).partial
    monkeypatch.setattr(impact, "MOST_EFFECTS", 1)
    assert impact.of(wanted("memory:write")).partial


# --- the week's calls, decided again ---------------------------------------------------------------------------------


def seen(proposal: Proposal, viewer: Viewer = AUDITOR) -> replay.Replay:
    found = impact.of(proposal, viewer).replay
    assert found is not None
    return found


def test_the_calls_that_would_turn_are_counted_with_their_users_and_newest_records(world: World) -> None:
    for sub in ("alice", "bob", "alice", "carol", "alice"):
        world.verify("memory.capture", token=token(sub=sub))
        world.verify("memory.recall", token=token(sub=sub))
    found = seen(wanted("memory:write"))
    assert (found.opened, found.stopped, found.marked, found.users) == (5, 0, 0, 3)
    assert (found.read, found.cut) == (10, False)
    [turn] = found.turns
    newest = list(Record.objects.filter(tool="memory.capture").order_by("-at").values_list("id", flat=True)[:3])
    assert (turn.client, turn.tool, turn.count) == ("claude", "memory.capture", 5)
    assert [number for number, _ in turn.examples] == newest
    assert turn.query == "window=7d&client=claude&tool=memory.capture&decision=deny"
    assert seen(proposals.to_revoke(world.grant)).stopped == 5
    assert seen(wanted("memory:read", effect="flag")).marked == 5
    assert seen(wanted("memory:read", effect="deny")).stopped == 5


def test_calls_that_were_refused_for_something_else_do_not_turn(world: World) -> None:
    world.verify("memory.capture", token=token(scope="memory:read"))  # the user did not consent
    world.verify("memory.capture", token=token(client="another-app"))  # unknown
    world.verify("memory.capture", token=token()[:-8] + "AAAAAAAA")  # forged
    world.verify("memory.capture", token=None)
    world.verify("memory.capture", tenant="other")
    world.verify("memory.capture", agent={"mode": "subagent", "scopes": ["memory:read"]})
    world.verify("memory.forget")
    found = seen(wanted("memory:write"))
    assert found.turns == () and found.opened == 0
    world.verify("memory.capture", agent={"mode": "subagent", "scopes": ["memory:write"]})
    assert seen(wanted("memory:write")).opened == 1


def test_a_narrow_grant_turns_only_what_it_matches(world: World) -> None:
    claims = {"org_id": "acme", "roles": ["doctor"]}
    Client.objects.get().oauth_client_ids.get().issuer.__class__.objects.update(
        tenant_claim="org_id", roles_claim="roles"
    )
    world.verify("memory.capture", token=token(sub="alice"))
    world.verify("memory.capture", token=token(sub="bob", **claims))
    world.verify("memory.capture", token=token(sub="bob", **claims), agent={"mode": "background"})
    alice = Subject.objects.get(uid=uid("alice"))
    capture = Tool.objects.get(name="memory.capture")
    for narrow, count in [
        ({"subject": alice}, 1), ({"tenant": "acme"}, 2), ({"role": "doctor"}, 2), ({"role": "nurse"}, 0),
        ({"modes": ("background",)}, 1), ({"modes": ("background", "interactive"), "tenant": "acme"}, 2),
        ({"tool": capture}, 3), ({"tool": Tool.objects.get(name="memory.recall")}, 0), ({"client": None}, 3),
    ]:  # fmt: skip
        assert seen(wanted("memory:write", **narrow)).opened == count, narrow


def test_users_who_are_blocked_by_now_stay_refused(world: World) -> None:
    for sub in ("alice", "bob"):
        world.verify("memory.capture", token=token(sub=sub))
    Subject.objects.filter(uid=uid("alice")).update(blocked_at=timezone.now())
    assert seen(wanted("memory:write")).opened == 1


def test_equal_questions_are_decided_once_whoever_asks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        world.verify("memory.capture", token=token(sub=f"user{number}"))
    asked = []
    real = replay.decide
    monkeypatch.setattr(replay, "decide", lambda *given: asked.append(1) or real(*given))
    found = seen(wanted("memory:write"))
    assert (found.opened, found.users, len(asked)) == (12, 12, 2)


def test_only_the_newest_are_read_and_it_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(7):
        world.verify("memory.capture")
    monkeypatch.setattr(replay, "MOST", 5)
    monkeypatch.setattr(replay, "PAGE", 2)
    found = seen(wanted("memory:write"))
    assert (found.read, found.opened, found.cut) == (5, 5, True)
    assert found.since == Record.objects.filter(tool="memory.capture").order_by("-at")[4].at


def test_only_what_the_viewer_may_see_is_counted(world: World) -> None:
    Client.objects.get().oauth_client_ids.get().issuer.__class__.objects.update(tenant_claim="org_id")
    world.verify("memory.capture")
    world.verify("memory.capture", token=token(org_id="acme"))
    world.verify("memory.capture", token=token(org_id="other"))
    assert seen(wanted("memory:write")).opened == 3
    assert seen(wanted("memory:write"), replace(AUDITOR, tenants=frozenset({"acme"}))).opened == 1
    blind = Viewer("staff:2", "bob")
    assert impact.of(wanted("memory:write"), blind).replay is None
    with pytest.raises(PermissionDenied):
        replay.over(blind, *([None] * 6))  # type: ignore[arg-type]


def test_it_counts_by_the_policy_of_now_not_of_then(world: World) -> None:
    world.verify("memory.capture")
    grants.create(actor=OPERATOR, reason="x", client=Client.objects.get(), scopes=scopes("memory:write"))
    assert seen(wanted("memory:write", effect="flag")).opened == 0
    assert seen(wanted("memory:write", effect="deny")).stopped == 1, "refused then, but allowed if asked now"
