"""Records as lines of the Common Event Format (CEF 0) in messages of syslog (RFC 5424). Pure.

The line is made from the OCSF event of `audit.ocsf`, so that both formats say the same, and neither says more.
"""

from collections.abc import Mapping
from typing import Any

FACILITY = 13  # log audit (RFC 5424, 6.2.1)
# By OCSF's severity: CEF's, of 0 to 10, and syslog's (RFC 5424, 6.2.1): informational, notice, warning, error.
CEF_SEVERITIES = {1: 1, 2: 3, 3: 5, 4: 8}
SYSLOG_SEVERITIES = {1: 6, 2: 5, 3: 4, 4: 3}
MAX_VALUE = 512
"""Bytes of one value. The message of whatever a record's columns can hold stays below 8 KiB, which each receiver by TLS
should take (RFC 5425, 4.3.1)."""
_HEADER = str.maketrans({"\\": "\\\\", "|": "\\|"})
_VALUE = str.maketrans({"\\": "\\\\", "=": "\\=", "\n": "\\n", "\r": "\\r"})


def line(event: Mapping[str, Any]) -> str:
    """One event in CEF: seven fields of the header, then the extension with names of its dictionary."""
    product, severity = event["metadata"]["product"], CEF_SEVERITIES[event["severity_id"]]
    header = [
        product["vendor_name"], product["name"], product["version"], _signature(event),
        f"{event['metadata']['event_code']}: {event['api']['operation']}", str(severity),
    ]  # fmt: skip
    fields = " ".join(f"{name}={_value(value)}" for name, value in _extension(event) if value is not None)
    return f"CEF:0|{'|'.join(_plain(_cut(field)).translate(_HEADER) for field in header)}|{fields}"


def message(event: Mapping[str, Any], host: str) -> bytes:
    """One event as a message of syslog: the header of RFC 5424, section 6, without structured data, and the line.

    The time is the record's own; `host` is ours, plain ASCII, `-` for none."""
    priority = FACILITY * 8 + SYSLOG_SEVERITIES[event["severity_id"]]
    at = event["metadata"]["original_time"].replace("+00:00", "Z")
    kind = "".join(c for c in event["metadata"]["event_code"] if "!" <= c <= "~")[:32] or "-"
    return f"<{priority}>1 {at} {host} muniment - {kind} - {line(event)}".encode()


def framed(messages: list[bytes]) -> bytes:
    """Messages one after the other in a stream, each with its length in front (RFC 6587, 3.4.1)."""
    return b"".join(b"%d %b" % (len(one), one) for one in messages)


def _signature(event: Mapping[str, Any]) -> str:
    """What kind of event: of a decision with its reason, of what else was done with its action."""
    said = event["unmapped"]["muniment"]
    detail = said.get("reason") or said.get("action")
    return f"{said['type']}.{detail}" if isinstance(detail, str) else str(said["type"])


def _extension(event: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The fields, in their order; those whose value is None are left out."""
    metadata, actor, said = event["metadata"], event["actor"], event["unmapped"]["muniment"]
    labelled: list[tuple[str, str, Any]] = [
        ("cn1", "Index", metadata["sequence"]),
        ("cn2", "PolicyVersion", said.get("policy_version")),
        ("cs1", "Tool", event["api"]["operation"]),
        ("cs2", "Leaf", said["leaf"]),
        ("cs3", "Tenant", metadata.get("tenant_uid")),
        ("cs4", "Scopes", " ".join(map(str, scopes)) if isinstance(scopes := said.get("scopes"), list) else None),
        ("cs5", "AgentMode", said.get("mode")),
        ("cs6", "Log", metadata["log_name"]),
    ]
    return [
        ("rt", event["time"]), ("externalId", metadata["uid"]), ("cat", metadata["event_code"]),
        ("act", event.get("action") or event["activity_name"]), ("outcome", event["status"].lower()),
        ("reason", event.get("status_code")), ("suid", actor.get("user", {}).get("uid")),
        ("sourceServiceName", actor.get("app_name")), ("destinationServiceName", event["api"]["service"]["name"]),
        ("duid", next((one["uid"] for one in event.get("resources", ())), None)), ("cnt", event.get("count")),
        *(pair for field, label, value in labelled if value is not None
          for pair in ((field, value), (f"{field}Label", label))),
        ("msg", event["message"]),
    ]  # fmt: skip


def _value(value: object) -> str:
    """A value of the extension: backslash, equals sign and line ends are escaped, other control characters gone."""
    text = str(value)
    if len(text) <= MAX_VALUE // 4 and text.isprintable() and "\\" not in text and "=" not in text:
        return text  # as nearly all are
    return _plain(_cut(text), "\n\r").translate(_VALUE)


def _cut(text: str) -> str:
    """At most MAX_VALUE bytes, whole characters; what cannot be written is replaced."""
    data = text.encode("utf-8", "replace")
    return data[:MAX_VALUE].decode("utf-8", "ignore")


def _plain(text: str, kept: str = "") -> str:
    """Without characters that end a line somewhere or steer a terminal: a space stands for each."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else " " for c in text)
