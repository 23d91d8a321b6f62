"""Limits in the policy file: made, changed, kept, pruned and exported; what a file cannot say is one line."""

import re
from pathlib import Path

import pytest

from clients.models import Limit
from clients.policyfile import PolicyFileError, parse
from clients.policyfile_apply import apply, diff
from clients.policyfile_export import export
from tests.world import World, build

WHOLE = """
limits:
  - {per: subject, rate: "60/minute", client: null, tool: null, tenant: null, modes: [interactive]}
  - {per: subject_client, rate: 20/hour, burst: 5, client: claude, tool: {backend: inner, name: memory.recall},
     tenant: acme, modes: [background, api], on_outage: deny, reason: agents at night}
"""


@pytest.fixture(autouse=True)
def world(db: None) -> World:
    return build()


def lines(text: str, prune: bool = False) -> list[str]:
    return [str(change) for change in apply(parse(text), "test.yaml", prune).changes]


def test_a_file_makes_limits_and_applied_again_it_changes_nothing() -> None:
    would = diff(parse(WHOLE), "test.yaml").changes
    assert [change.detail for change in would] == [line.partition(": ")[2] for line in lines(WHOLE)]
    assert len(would) == 2
    assert lines(WHOLE) == []
    first, second = Limit.objects.order_by("pk")
    assert (first.per, first.count, first.period, first.burst, first.modes, first.on_outage) == (
        "subject", 60, "minute", None, ["interactive"], "access",
    )  # fmt: skip
    assert (second.client and second.client.slug, second.tool and second.tool.name, second.tenant) == (
        "claude", "memory.recall", "acme",
    )  # fmt: skip
    assert (second.burst, second.modes, second.on_outage) == (5, ["api", "background"], "deny")
    assert second.reason == "agents at night"


def test_another_rate_is_the_same_limit_and_another_mode_another_limit() -> None:
    lines(WHOLE)
    assert lines('limits: [{per: subject, rate: "90/hour", modes: [interactive]}]') == [
        "update limit 1: Each user may call in interactive mode 90 times an hour"
    ]
    assert lines("limits: [{per: subject, rate: 1/day}]") == ["create limit 3: Each user may call once a day"]
    assert Limit.objects.count() == 3, "what the file leaves out stays"


def test_pruning_deletes_what_the_file_leaves_out_and_a_file_without_limits_leaves_them() -> None:
    lines(WHOLE)
    assert lines("scopes: []", prune=True)[-1:] != ["delete limit 1"] and Limit.objects.count() == 2
    assert len(lines("limits: []", prune=True)) == 2 and not Limit.objects.exists()


def test_what_is_exported_can_be_applied_and_changes_nothing() -> None:
    lines(WHOLE)
    text = export()
    assert "rate: 20/hour" in text and lines(text, prune=True) == []


def test_the_example_of_the_documentation_can_be_applied() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/limits.md").read_text()
    [example] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(lines(example)) == 3 and lines(example) == []


WRONG = [
    ("{per: subject, rate: 0/minute}", "limits[0].rate: must be"),
    ("{per: subject, rate: 60/minute, burst: 61}", "limits[0].burst: From 1 to 60"),
    ("{per: subject, rate: 9999999999/day}", "limits[0].rate: From 1 to 1,000,000,000"),
    ("{per: subject, rate: 1/day, client: nobody}", "limits[0].client: there is no client nobody"),
    ("{per: subject, rate: 1/day, tool: {backend: inner, name: x}}", "limits[0].tool: there is no tool inner/x"),
    ('{per: subject, rate: 1/day, tenant: "a\\tb"}', "limits[0].tenant: The tenant must be printable"),
    ("{per: tool, rate: 1/day}, {per: tool, rate: 2/day}", "limits[1]: counts the same as limits[0]"),
    ('{per: tool, rate: 1/day, reason: " "}', "limits[0]: A reason is needed."),
]


def test_a_wrong_limit_changes_nothing_and_is_said() -> None:
    for text, words in WRONG:
        with pytest.raises(PolicyFileError) as error:
            lines(f"limits: [{text}]")
        assert words in str(error.value) and "\n" not in str(error.value)
        assert not Limit.objects.exists(), text
