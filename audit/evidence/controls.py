"""The controls that an evidence pack answers to. What each asks is told in words of our own, for orientation: the
standard itself says what is required."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Control:
    """One control. `sections` are those of the pack that answer it, records and figures alike
    (`audit.evidence.packing`)."""

    slug: str
    code: str
    title: str
    asks: str
    met: str
    sections: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Framework:
    """A standard or a law, and its controls."""

    slug: str
    name: str
    controls: tuple[Control, ...]


FRAMEWORKS = (
    Framework("soc2", "SOC 2 (Trust Services Criteria)", (
        Control(
            "cc6-1", "CC6.1", "Access to protected information is restricted",
            "That only those who are authorised can reach the information, by measures that are in place and work.",
            "Each call of an AI client is decided before any data is touched: by the user's own token, the scopes that "
            "the tool needs, and the grants of staff. What is not granted is refused, and each refusal is a record.",
            ("calls", "grants", "denials", "turned-away", "ungoverned", "staff", "stops", "keys"),
        ),
        Control(
            "cc6-2", "CC6.2", "Whoever gets access is registered and authorised first",
            "That access is given only after somebody was registered and authorised, and ends when it is not due.",
            "Clients, issuers and backends are registered by staff before their calls are taken. Staff get roles, and "
            "lose them, by recorded acts. Whoever may not grant asks, and another person approves.",
            ("staff", "requests", "policy-changes", "stops"),
        ),
        Control(
            "cc6-3", "CC6.3", "Access follows roles and least privilege, and is changed and taken away",
            "That access is given, changed and removed by role and need, with duties kept apart.",
            "A grant names the client, the scopes and, where it is narrower, the user, role, tenant or tool, with a "
            "reason and an end. Requests are decided by a second person. Reviews go through what is still granted.",
            ("grants", "requests", "access-reviews", "stops"),
        ),
        Control(
            "cc7-2", "CC7.2", "The system is watched for what is out of the ordinary",
            "That components are monitored for anomalies, and that what is found is looked into.",
            "Alerts are raised and ended on record. The log is verified against its own signatures each night and by "
            "samples each hour, and its signed state is held where the database's administrator cannot reach.",
            ("notices", "verifications", "anchoring", "denials", "turned-away", "ungoverned"),
        ),
        Control(
            "cc8-1", "CC8.1", "Changes are authorised, recorded and reviewed",
            "That changes go through a defined way: authorised, recorded, and approved before they take effect.",
            "Every change of the policy, by whatever way it was made, is a version of its own with a record: what was "
            "before, what is now, who, and why. No decision can be made from a version that is not on record.",
            ("policy-changes", "grants", "requests", "access-reviews", "keys"),
        ),
    )),
    Framework("iso42001", "ISO/IEC 42001", (
        Control(
            "a-6-2-8", "A.6.2.8", "Event logs of the AI system are recorded",
            "That it is settled in which phases of an AI system's life events are logged, and that they are, at least "
            "while the system is in use.",
            "Each call that an AI client makes through a governed tool is a record, allowed or refused, with its "
            "client, user, tool, scopes and policy; so is each change of what is allowed. Records are signed, sealed "
            "in a Merkle tree and anchored. How long they stay is a rule, and what goes is on record first.",
            ("calls", "denials", "ungoverned", "policy-changes", "verifications", "anchoring", "retention", "holds",
             "other"),
        ),
    )),
    Framework("hipaa", "HIPAA Security Rule", (
        Control(
            "164-312-b", "45 CFR 164.312(b)", "Audit controls",
            "Mechanisms that record and examine activity in systems which hold or use electronic protected health "
            "information.",
            "Activity is recorded call by call before it is answered, and what staff do is recorded too: sign-ins, "
            "looks at who a user is, what was taken out. The records are examined: verified against their signatures, "
            "searched, reviewed. Deletion is by rule, stopped by holds, and on record.",
            ("calls", "looks", "exports", "staff", "access-reviews", "verifications", "anchoring", "retention",
             "erasures", "holds"),
        ),
    )),
    Framework("euaiact", "EU AI Act", (
        Control(
            "art-12", "Article 12", "Record-keeping",
            "That a high-risk AI system can by itself record events over its lifetime, so that risks can be "
            "recognised, the system be watched after it is placed on the market, and its operation be monitored.",
            "What AI clients did with data is recorded automatically, by the one who answers the call. Calls that a "
            "backend let through without an answer are reported afterwards and marked as that. Logs are kept by rules "
            "with floors; legal holds stop deletion; an erased person is forgotten while the record of events stays.",
            ("calls", "denials", "ungoverned", "notices", "verifications", "anchoring", "retention", "holds",
             "erasures", "keys"),
        ),
    )),
)  # fmt: skip
BY_SLUG = {framework.slug: framework for framework in FRAMEWORKS}


def chosen(slugs: Sequence[str]) -> tuple[Framework, ...]:
    """These frameworks, in the order of the pack; all of them where none is named. Raises ValueError for another."""
    if unknown := sorted(set(slugs) - BY_SLUG.keys()):
        raise ValueError(f"no such framework: {', '.join(unknown)}; there are {', '.join(BY_SLUG)}")
    return tuple(framework for framework in FRAMEWORKS if framework.slug in slugs or not slugs)
