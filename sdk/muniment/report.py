"""What the verification of a bundle gives: its findings, and the facts that hold when there are none."""

from msgspec import Struct, field

from muniment.findings import Finding

MOST = 1_000
"""Findings that are kept; others are only counted."""


class Cosigned(Struct):
    """The largest checkpoint that a trusted witness cosigned, and when it did (unix seconds)."""

    witness: str
    origin: str
    size: int
    at: int


class Sealed(Struct):
    """A log's tree that the records were proven with; `keys`: ids of the trusted keys that signed it (none for a log
    that was closed, whose end the next log vouches for)."""

    origin: str
    size: int
    root: str
    keys: list[str]


class Facts(Struct):
    """What was looked at. Times in ISO 8601, indices with both ends included. `until_end`: the range ends with the log
    as it was sealed, so that nothing shows what came after. `matching`, `allowed` and `denied` count the open records
    of the range that was asked for, and the decisions among them."""

    first: int = 0
    last: int = 0
    since: str = ""
    until: str = ""
    subject: str | None = None
    client: str | None = None
    until_end: bool = False
    records: int = 0
    opened: int = 0
    closed: int = 0
    deleted: int = 0
    matching: int = 0
    allowed: int = 0
    denied: int = 0
    disclosed: int = 0
    unreadable: int = 0
    trusted: bool = False
    compared: int = 0
    logs: list[Sealed] = field(default_factory=list)
    cosigned: list[Cosigned] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)
    fingerprints: list[str] = field(default_factory=list)


class Report:
    """Findings as they come, and facts."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.count = 0
        self.facts = Facts()

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return self.count == 0

    def add(self, finding: Finding) -> None:
        """Keep a finding, or count it."""
        self.count += 1
        if len(self.findings) < MOST:
            self.findings.append(finding)

    def find(self, code: str, message: str, index: int | None = None) -> None:
        """The same, from its parts."""
        self.add(Finding(code, message, index))
