"""Which rule counts: the most specific, of equally specific ones the longest; and what floors make of them."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit import bundle_reading, record_words, verification
from audit.retention import floors
from audit.retention import words as retention_words
from audit.retention.rules import CALLS, KEPT, TYPES, Facts, Rule, counts, ordered, shortest

NAMES = st.sampled_from([None, "a", "b"])
SENSITIVE = st.sampled_from([None, True, False])
RULES = st.lists(
    st.builds(
        Rule, st.integers(1, 99), st.integers(1, 5000), st.sampled_from([None, *TYPES]), NAMES, NAMES, NAMES, SENSITIVE
    ),
    max_size=8,
    unique_by=lambda rule: rule.id,
)
patient = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # on a machine that is busy
FACTS = st.builds(Facts, st.sampled_from([*TYPES, *KEPT]), NAMES, NAMES, NAMES, SENSITIVE)


def test_a_rule_that_names_more_counts_before_a_longer_one() -> None:
    rules = [Rule(1, 3650), Rule(2, 30, type="decision"), Rule(3, 90, type="decision", client="claude")]
    assert counts(rules, Facts("decision", client="claude")) == rules[2]
    assert counts(rules, Facts("decision", client="ios")) == rules[1]
    assert counts(rules, Facts("staff")) == rules[0]


def test_of_rules_that_name_equally_many_the_longest_counts() -> None:
    rules = [Rule(1, 30, client="claude"), Rule(2, 400, tenant="acme"), Rule(3, 400, backend="inner")]
    assert counts(rules, Facts("decision", "inner", "claude", "acme")) == rules[1]
    assert counts(rules[:1] + rules[2:], Facts("decision", "inner", "claude", "acme")) == rules[2]


def test_without_a_rule_that_fits_a_record_is_kept() -> None:
    assert counts([], Facts("decision")) is None
    assert counts([Rule(1, 30, client="claude")], Facts("decision")) is None
    assert shortest([]) is None and shortest([Rule(1, 30), Rule(2, 9, client="x")]) == 9


def test_what_verifiers_and_bundles_judge_others_by_is_kept() -> None:
    assert set(bundle_reading.TOLD) | set(verification.CONTEXT) <= set(KEPT)
    assert not set(KEPT) & set(TYPES)


@pytest.mark.parametrize("kind", KEPT)
def test_no_rule_fits_a_record_by_which_others_are_judged(kind: str) -> None:
    assert counts([Rule(1, 1), Rule(2, 1, type=kind)], Facts(kind)) is None


@patient
@given(RULES, FACTS)
def test_what_counts_fits_and_nothing_that_fits_is_more_specific_or_as_specific_and_longer(
    rules: list[Rule], facts: Facts
) -> None:
    found = counts(rules, facts)
    fitting = [rule for rule in rules if rule.fits(facts)]
    if facts.type in KEPT or not fitting:
        assert found is None
    else:
        assert found in fitting
        assert max((rule.named, rule.days) for rule in fitting) == (found.named, found.days)


@patient
@given(RULES, FACTS, st.randoms())
def test_the_order_in_which_rules_are_stored_does_not_matter(rules: list[Rule], facts: Facts, random: object) -> None:
    shuffled = list(rules)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert counts(rules, facts) == counts(shuffled, facts)
    assert ordered(rules) == ordered(shuffled)


@patient
@given(RULES, FACTS, st.dictionaries(st.sampled_from(list(floors.BY_KEY)), st.sampled_from(["off", "warn", "refuse"])))
def test_no_record_is_kept_for_less_than_a_floor_that_refuses(
    rules: list[Rule], facts: Facts, modes: dict[str, str]
) -> None:
    found = counts(floors.raised(rules, modes), facts)
    for preset in floors.PRESETS:
        about = not preset.sensitive_only or (facts.type in CALLS and facts.sensitive is True)
        if found is not None and about and modes.get(preset.key) == "refuse":
            assert found.days >= preset.days
    assert {rule.id: rule.days for rule in rules} == {rule.id: rule.days for rule in floors.raised(rules, {})}


def test_a_floor_names_its_days_and_its_source() -> None:
    assert {preset.key: preset.days for preset in floors.PRESETS} == {
        "eu-ai-act": 184, "pci-dss": 365, "hipaa": 2192, "soc-2": 365,
    }  # fmt: skip
    sources = " ".join(preset.source for preset in floors.PRESETS)
    assert all(words in sources for words in ("Articles 19(1) and 26(6)", "10.5.1", "164.316(b)(2)(i)", "CC7.2"))


def test_the_floor_for_sensitive_tools_is_not_held_against_rules_for_others() -> None:
    modes = {"eu-ai-act": "refuse"}
    short = Rule(1, 30, type="decision")
    assert [one.key for one in floors.below(short, modes, "refuse")] == ["eu-ai-act"]
    assert [one.key for one in floors.below(replace(short, type=None), modes, "refuse")] == ["eu-ai-act"]
    for other in (replace(short, sensitive=False), replace(short, type="staff"), replace(short, days=184)):
        assert floors.below(other, modes, "refuse") == []
    assert floors.below(short, modes, "warn") == floors.below(short, {}, "refuse") == []


def test_of_several_floors_the_highest_comes_first() -> None:
    modes = dict.fromkeys(floors.BY_KEY, "warn")
    assert [one.key for one in floors.below(Rule(1, 364), modes, "warn")] == ["hipaa", "pci-dss", "soc-2"]


def test_rules_and_days_in_words() -> None:
    assert retention_words.about(Rule(1, 30)) == "all records"
    named = Rule(1, 30, "decision", "inner", "claude", "acme", True)
    said = "calls of sensitive tools with their outcomes, backend inner, client claude, tenant acme"
    assert retention_words.about(named) == said
    assert retention_words.about(Rule(1, 30, sensitive=False)) == "calls of tools that are not sensitive"
    for days, words in ((1, "1 day"), (30, "30 days"), (365, "365 days (a year)"), (366, "366 days (a year)"),
                        (2192, "2,192 days (6 years)"), (2193, "2,193 days")):  # fmt: skip
        assert retention_words.long(days) == words


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"action": "deleted", "ranges": [[0, 1200], [5000, 3441]], "month": "2026-01"},
         "Muniment set out to delete 4,641 records of January 2026"),
        ({"action": "deleted", "ranges": [[0], "x", [1, "2"], [4, 1]], "month": "soon"},
         "Muniment set out to delete 1 record"),
        ({"action": "keys.destroyed", "count": 1},
         "Muniment set out to destroy 1 daily key of callers that could not be established"),
        ({"action": "rule.added", "new": {"type": "staff", "days": 365}},
         "Staff member 7 added the retention rule for staff actions: 365 days (a year)"),
        ({"action": "rule.changed", "old": {"days": 30}, "new": {"days": 1, "client": "claude"}},
         "Staff member 7 changed the retention rule for all records: 30 days, to all records, client claude: 1 day"),
        ({"action": "rule.removed", "old": {"sensitive": False, "days": 30}},
         "Staff member 7 removed the retention rule for calls of tools that are not sensitive: 30 days"),
        ({"action": "floor.set", "preset": "hipaa", "old": "off", "new": "warn"},
         "Staff member 7 set the floor HIPAA from off to warn"),
        ({"action": "floor.set", "preset": ["x"], "old": 1}, "Staff member 7 set the floor ['x'] from 1 to None"),
        ({"action": "rule.added", "new": [1], "old": 7},
         "Staff member 7 added the retention rule for all records: 0 days"),
        ({"action": None}, "Retention: None"), ({}, "Retention: None"),
    ],
)  # fmt: skip
def test_a_record_of_retention_in_one_sentence(said: dict[str, object], words: str) -> None:
    assert record_words.title({"type": "retention", "actor": "staff:7"} | said, {}) == words
