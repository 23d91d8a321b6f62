"""What OCSF 1.5.0 asks of an API Activity event, as far as ours have it: required members, types, enumerations, and
that of some objects one member at least must be there. A table of facts of the schema, so that a test needs no network.
"""

from typing import Any

REQUIRED = {
    "": ["activity_id", "actor", "api", "category_uid", "class_uid", "metadata", "severity_id", "src_endpoint", "time",
         "type_uid"],
    "metadata": ["product", "version"],
    "metadata.product": [],
    "api": ["operation"],
}  # fmt: skip
AT_LEAST_ONE = {
    "actor": ["process", "user", "invoked_by", "session", "app_name", "app_uid"],
    "actor.user": ["account", "name", "uid"],
    "actor.idp": ["name", "uid"],
    "api.service": ["name", "uid"],
    "src_endpoint": ["ip", "uid", "name", "hostname", "svc_name", "instance_uid", "interface_uid", "interface_name",
                     "domain"],
    "metadata.product": ["name", "uid"],
    "policy": ["name", "uid"],
}  # fmt: skip
ENUMS = {
    "activity_id": {0: "Unknown", 1: "Create", 2: "Read", 3: "Update", 4: "Delete", 99: None},
    "severity_id": {
        0: "Unknown", 1: "Informational", 2: "Low", 3: "Medium", 4: "High", 5: "Critical", 6: "Fatal", 99: None,
    },
    "status_id": {0: "Unknown", 1: "Success", 2: "Failure", 99: None},
    "action_id": {0: "Unknown", 1: "Allowed", 2: "Denied", 3: "Observed", 4: "Modified", 99: None},
    "disposition_id": {0: "Unknown", 1: "Allowed", 2: "Blocked", 26: "Unauthorized", 99: None},
}  # fmt: skip
SIBLINGS = {
    "activity_id": "activity_name", "severity_id": "severity", "status_id": "status", "action_id": "action",
    "disposition_id": "disposition",
}  # fmt: skip
# Of the base event, of the class, and of the profile Security Control: whatever else is there, no receiver knows.
MEMBERS = {
    "activity_id", "activity_name", "actor", "api", "category_name", "category_uid", "class_name", "class_uid", "count",
    "message", "metadata", "resources", "severity", "severity_id", "src_endpoint", "status", "status_code",
    "status_detail", "status_id", "time", "type_name", "type_uid", "unmapped",
}  # fmt: skip
PROFILE = {"action", "action_id", "disposition", "disposition_id", "is_alert", "policy"}
METADATA = {
    "correlation_uid", "event_code", "log_name", "log_provider", "original_time", "product", "profiles", "sequence",
    "tenant_uid", "uid", "version",
}  # fmt: skip


def faults(event: dict[str, Any]) -> list[str]:
    """Everything about an event that the schema does not allow; nothing for a good one."""
    found = [f"{path or 'event'} lacks {name}" for path, names in REQUIRED.items() for name in names
             if name not in (_at(event, path) or {})]  # fmt: skip
    for path, names in AT_LEAST_ONE.items():
        part = _at(event, path)
        if part is not None and not any(part.get(name) for name in names):
            found.append(f"{path} has none of {names}")
    for name, values in ENUMS.items():
        if name not in event:
            continue
        if event[name] not in values:
            found.append(f"{name} is {event[name]!r}")
        elif (caption := values[event[name]]) is not None and event.get(SIBLINGS[name]) != caption:
            found.append(f"{SIBLINGS[name]} is {event.get(SIBLINGS[name])!r}, not {caption}")
    if event.get("type_uid") != event.get("class_uid", 0) * 100 + event.get("activity_id", 0):
        found.append("type_uid is not of its class and activity")
    if (event.get("class_uid"), event.get("category_uid")) != (6003, 6):
        found.append("another class")
    return found + _strangers(event) + _types(event)


def _at(event: dict[str, Any], path: str) -> Any:
    found: Any = event
    for name in path.split(".") if path else []:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _strangers(event: dict[str, Any]) -> list[str]:
    profiles = (event.get("metadata") or {}).get("profiles", [])
    allowed = MEMBERS | (PROFILE if "security_control" in profiles else set())
    found = [f"no member {name}" for name in event if name not in allowed]
    return found + [f"no member metadata.{name}" for name in event.get("metadata") or {} if name not in METADATA]


def _types(event: dict[str, Any]) -> list[str]:
    wanted = {"time": int, "message": str, "metadata.sequence": int, "metadata.uid": str, "api.operation": str,
              "count": int, "is_alert": bool, "unmapped": dict, "resources": list, "policy.version": str}  # fmt: skip
    return [f"{path} is no {kind.__name__}" for path, kind in wanted.items()
            if (value := _at(event, path)) is not None and type(value) is not kind]  # fmt: skip
