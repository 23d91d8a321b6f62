"""What regulations ask for at the least: presets that hold rules against a floor, each with where it says so.

A floor that refuses is held against a rule when it is written, and once more when records are deleted: a rule that is
shorter keeps for the floor's days. Which of them apply to an organisation is for its lawyers to say; all begin off."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from audit.retention.rules import CALLS, Rule

OFF, WARN, REFUSE = "off", "warn", "refuse"


@dataclass(frozen=True, slots=True)
class Preset:
    """A floor: `days` at the least, for the calls of sensitive tools alone or for every record."""

    key: str
    title: str
    days: int
    span: str
    source: str
    sensitive_only: bool = False

    def applies(self, rule: Rule) -> bool:
        """Whether the rule can fit a record that the floor is about."""
        if not self.sensitive_only:
            return True
        return rule.sensitive is not False and rule.type in (None, *CALLS)


PRESETS = (
    Preset(
        "eu-ai-act", "EU AI Act", 184, "six months",
        "Regulation (EU) 2024/1689, Articles 19(1) and 26(6): logs of high-risk AI systems are kept for a period"
        " appropriate to the intended purpose, of at least six months. Here: the calls of sensitive tools.",
        sensitive_only=True,
    ),
    Preset(
        "pci-dss", "PCI DSS", 365, "twelve months",
        "PCI DSS v4.0.1, requirement 10.5.1: audit log history is retained for at least 12 months, the most recent"
        " three of them immediately available for analysis.",
    ),
    Preset(
        "hipaa", "HIPAA", 2192, "six years",
        "45 CFR 164.316(b)(2)(i): required documentation is retained for 6 years from the date of its creation or the"
        " date when it last was in effect, whichever is later.",
    ),
    Preset(
        "soc-2", "SOC 2", 365, "one year",
        "AICPA Trust Services Criteria, CC7.2 and CC7.3: the criteria name no period. One year is what it takes to show"
        " an auditor a whole examination period of twelve months.",
    ),
)  # fmt: skip
BY_KEY = {preset.key: preset for preset in PRESETS}


def below(rule: Rule, modes: Mapping[str, str], mode: str) -> list[Preset]:
    """The floors in this mode that a rule is shorter than, the highest first."""
    found = [one for one in PRESETS if modes.get(one.key, OFF) == mode and one.applies(rule) and rule.days < one.days]
    return sorted(found, key=lambda one: -one.days)


def raised(rules: Iterable[Rule], modes: Mapping[str, str]) -> list[Rule]:
    """The rules as they are followed: one that is below a floor that refuses keeps for the floor's days."""
    made = []
    for rule in rules:
        floors = below(rule, modes, REFUSE)
        made.append(replace(rule, days=floors[0].days) if floors else rule)
    return made
