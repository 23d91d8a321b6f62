"""Why calls are refused: every reason in plain words, with what to do and how often it was given lately."""

import pytest
from django.template import Context, Template

from audit import rollups
from audit.reasons import REASONS
from tests.staff import administrator, drained, member
from tests.world import World, build


@pytest.fixture
def world(db: None) -> World:
    return build()


def test_every_reason_is_there_in_plain_words(world: World) -> None:
    text = administrator().get("/admin/reasons/").content.decode()
    for code, reason in REASONS.items():
        assert (f'id="{code}"' in text) == (code != "granted"), code
        if code != "granted":
            assert reason.title in text


def test_the_count_is_that_of_the_last_week_and_leads_to_its_calls(world: World) -> None:
    for _ in range(3):
        world.verify(tool="memory.capture")
    drained()
    rollups.count()
    response = administrator().get("/admin/reasons/")
    counts = {one.reason.code: one.calls for _, part in response.context["parts"] for one in part}
    assert counts.pop("not_granted") == 3 and set(counts.values()) == {0}
    assert "reason=not_granted" in response.content.decode()


def test_who_may_not_read_records_sees_no_count(world: World) -> None:
    world.verify(tool="memory.capture")
    drained()
    rollups.count()
    text = member("noor", "clients.view_grant").get("/admin/reasons/").content.decode()
    assert "Not granted" in text and "call</a>" not in text and "no call" not in text
    assert "/admin/tools/backend/" not in text, "a page that this viewer may not see"


def test_a_reason_in_a_list_leads_to_what_it_means() -> None:
    def shown(code: str | None) -> str:
        return Template("{% load muniment %}{% reason code %}").render(Context({"code": code}))

    assert '<a href="/admin/reasons/#not_granted" title="No grant lets' in shown("not_granted")
    assert ">Not granted</a>" in shown("not_granted")
    assert shown("granted") == "Granted" and shown(None) == "—"
    assert shown("<of another version>") == "&lt;of another version&gt;"
