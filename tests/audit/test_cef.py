"""Records as CEF in syslog: read back by a parser of the test's own, whatever hostile text a record holds."""

import re
from typing import Any

import pytest

from audit import cef, ocsf
from tests.audit.test_ocsf import CALL, COLUMNS, STATEMENTS, event

SYSLOG = re.compile(
    rb"<([0-9]{1,3})>1 ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(?:\.[0-9]{1,6})?Z) ([!-~]{1,255}) ([!-~]{1,48})"
    rb" ([!-~]{1,128}) ([!-~]{1,32}) - (.*)", re.DOTALL,
)  # fmt: skip
HOSTILE = "a|b\\c=d\ne\r\x1b[31m\x00\u2028 é\U0001f600 <134>1 act=allowed"


def read(line: str) -> tuple[list[str], dict[str, str]]:
    """The fields of the header and of the extension, as a receiver takes them apart."""
    fields, text = [], line
    for _ in range(7):
        found = re.match(r"((?:[^\\|]|\\[\\|])*)\|", text)
        assert found, text
        fields.append(re.sub(r"\\(.)", r"\1", found[1]))
        text = text[found.end() :]
    names = list(re.finditer(r"(?:^|(?<= ))([A-Za-z0-9]+)=", text))
    extension = {}
    for name, following in zip(names, [*names[1:], None], strict=True):
        value = text[name.end() : following.start() - 1 if following else None]
        plain = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), value)
        extension[name[1]] = plain
    return fields, extension


@pytest.mark.parametrize("kind", STATEMENTS)
def test_each_type_of_record_is_a_line_that_reads_back(kind: str) -> None:
    made = ocsf.event(COLUMNS, STATEMENTS[kind], "muniment.test/log")
    header, extension = read(cef.line(made))
    assert header[:4] == ["CEF:0", "Muniment", "Muniment", ocsf.PRODUCT["version"]]
    assert 0 <= int(header[6]) <= 10
    assert extension["externalId"] == made["metadata"]["uid"]
    assert (extension["cn1"], extension["cn1Label"]) == ("7", "Index")
    assert extension["msg"] == made["message"]


def test_a_denied_call_says_so_where_rules_look() -> None:
    header, extension = read(cef.line(event(decision="deny", reason="not_granted", sensitive=True)))
    assert header[4:] == ["decision.not_granted", "decision: memory.recall", "5"]
    expected = {
        "act": "Denied", "outcome": "failure", "reason": "not_granted", "suid": "usr_1", "cat": "decision",
        "rt": "1772442000123", "cs1": "memory.recall", "cs3": "acme", "cn2": "42",
    }  # fmt: skip
    assert expected.items() <= extension.items()
    assert extension["sourceServiceName"] == "claude"
    assert extension["destinationServiceName"] == "inner"


def test_hostile_text_stays_in_its_field_and_on_its_line() -> None:
    fields: dict[str, Any] = dict.fromkeys(("tool", "tenant", "subject", "client", "backend", "reason"), HOSTILE)
    line = cef.line(event(**fields, required=[HOSTILE]))
    assert not re.search(r"[\x00-\x1f\x7f\u2028]", line)
    header, extension = read(line)
    assert header[5].startswith("decision: a|b\\c=d e ")
    assert "acti" not in extension
    assert extension["act"] == "Allowed"
    assert extension["cs3"] == HOSTILE.replace("\x1b", " ").replace("\x00", " ").replace("\u2028", " ")


def test_a_message_is_rfc_5424_and_bounded() -> None:
    found = SYSLOG.fullmatch(cef.message(event(), "log-host"))
    assert found
    assert found.groups()[:6] == (b"110", b"2026-03-02T09:00:00.123456Z", b"log-host", b"muniment", b"-", b"decision")
    assert found[7].decode() == cef.line(event())
    fields: dict[str, Any] = dict.fromkeys(
        ("tool", "tenant", "subject", "client", "client_id", "backend", "reason"), "=\U0001f600" * 60_000
    )
    longest = cef.message(event(**fields, required=["=" * 60_000], agent={"mode": "=" * 60_000}), "h" * 255)
    assert len(longest) <= 16 * 1024
    assert SYSLOG.fullmatch(longest)
    bounded = {"tool": "=" * 128, "tenant": "=" * 255, "subject": "=" * 40, "client": "=" * 64, "backend": "=" * 64}
    real = cef.message(event(**bounded, reason="=" * 40, required=["=" * 60_000]), "h" * 255)
    assert len(real) <= 8 * 1024
    assert cef.message(ocsf.event(COLUMNS, CALL | {"type": "ä b"}, "o"), "-").startswith(
        b"<110>1 2026-03-02T09:00:00.1"
    )


def test_frames_have_their_length_in_bytes_in_front() -> None:
    assert cef.framed([b"abc", "ä".encode()]) == b"3 abc2 \xc3\xa4"
