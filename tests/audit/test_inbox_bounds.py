"""The inbox is bounded, as a whole and for each source, so that who makes names up hides nobody else's."""

import pytest

from audit import inbox
from audit.models import Sighting

pytestmark = pytest.mark.usefixtures("db")


def seen(source: str, *names: str) -> None:
    for name in names:
        inbox.note("tool", source, name)
    inbox.flush(last=True)


def test_one_source_that_makes_names_up_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_OF_SOURCE", 3)
    for number in range(6):
        seen("noisy", f"tool.{number}")
    seen("quiet", "tool.0")
    seen("noisy", "tool.1")
    assert Sighting.objects.filter(source="noisy").count() == 3
    assert Sighting.objects.get(source="noisy", name="tool.1").count == 2, "what is there is still counted"
    assert Sighting.objects.filter(source="quiet").exists()


def test_all_sources_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_ROWS", 3)
    for number in range(6):
        seen(f"source-{number}", "tool")
    assert Sighting.objects.count() == 3


def test_between_two_flushes_so_many_names_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_NAMES", 2)
    seen("noisy", "a", "b", "c", "a")
    assert dict(Sighting.objects.values_list("name", "count")) == {"a": 2, "b": 1}
