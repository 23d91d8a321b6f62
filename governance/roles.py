"""The roles of staff (DESIGN.md section 7), and what each may do. Migrations make them as groups from here; a later
change of a role is a migration that calls `make` again."""

from collections.abc import Mapping
from typing import Any

AUDITOR, MANAGER, APPROVER = "Auditor", "Access manager", "Approver"
PRIVACY, ADMINISTRATOR = "Privacy officer", "Administrator"

# Everybody on the staff sees the policy and may ask for a grant; what is evidence needs a role that reads it.
POLICY = [
    "clients.view_client", "clients.view_grant", "clients.view_accessrequest", "clients.view_review",
    "clients.view_limit", "clients.view_issuer", "clients.view_signalstream", "clients.view_scimconnection",
    "tools.view_tool", "tools.view_scope", "tools.view_backend", "audit.view_sighting",
]  # fmt: skip
# How long the trail is kept, what stops that, and what was handed over, to look at.
KEEPING = [
    "audit.view_hold", "audit.view_retentionrule", "audit.view_erasure", "audit.view_export", "audit.view_stream",
]  # fmt: skip
RECORDS = ["audit.view_record", "audit.view_subject", "audit.view_publishedkey"]
LOG = ["audit.view_outbox", "audit.view_checkpoint", "audit.view_alert", "audit.view_verification"]

ROLES: Mapping[str, tuple[str, list[str]]] = {
    AUDITOR: (
        "Reads the policy and the whole trail, without personal data, and takes evidence out as files.",
        [*POLICY, *RECORDS, *LOG, *KEEPING, "audit.export_record", "audit.add_export", "governance.view_staffkey",
         "clients.view_keyset", "tools.view_backendkey"],
    ),
    MANAGER: (
        "Grants, extends and revokes; decides on unknown clients and changed tools; reviews access; can stop a client,"
        " tool, backend or user.",
        [*POLICY, *RECORDS, "clients.add_grant", "clients.change_grant", "clients.add_limit", "clients.change_limit",
         "clients.delete_limit", "clients.add_client", "clients.change_client", "clients.add_review",
         "clients.change_review", "tools.add_tool", "tools.change_tool", "tools.change_backend",
         "audit.change_sighting", "audit.change_subject"],
    ),
    APPROVER: (
        "The second pair of eyes: approves or rejects what others ask for, and releases legal holds.",
        [*POLICY, *RECORDS, "clients.decide_accessrequest", "audit.view_hold", "audit.release_hold"],
    ),
    PRIVACY: (
        "Sees who users are, answers their questions about their data, can stop and erase a user; decides how long the"
        " trail is kept, and places legal holds. Each look is recorded.",
        [*POLICY, *RECORDS, *KEEPING, "audit.view_personal", "audit.export_record", "audit.change_subject",
         "audit.add_hold", "audit.release_hold", "audit.change_retentionrule", "audit.add_erasure", "audit.add_export"],
    ),
    ADMINISTRATOR: (
        "Runs the platform: issuers, backends, keys, scopes, staff, schedules. Neither grants nor sees personal data.",
        [*POLICY, *RECORDS, *LOG, *KEEPING, "audit.change_stream", "audit.change_export", "clients.add_issuer",
         "clients.change_issuer", "clients.view_keyset",
         "clients.change_keyset", "clients.add_signalstream", "clients.change_signalstream",
         "clients.add_scimconnection", "clients.change_scimconnection", "clients.add_client", "clients.change_client",
         "tools.add_backend", "tools.change_backend", "tools.view_backendkey", "tools.add_backendkey",
         "tools.change_backendkey", "tools.add_scope", "tools.change_scope", "tools.delete_scope", "tools.add_tool",
         "tools.change_tool",
         "audit.change_subject", "governance.view_staffkey", "governance.change_staffkey", "auth.view_user",
         "auth.add_user", "auth.change_user", "auth.view_group", "django_celery_beat.view_periodictask"],
    ),
}  # fmt: skip


def make(apps: Any, using: str) -> None:
    """Make each role's group with exactly its permissions. `apps` is the registry of a migration, or the live one;
    the permissions must exist. Raises LookupError for one that does not."""
    group_of, permission_of = apps.get_model("auth", "Group"), apps.get_model("auth", "Permission")
    known = {
        f"{app}.{codename}": pk
        for pk, app, codename in permission_of.objects.using(using).values_list(
            "pk", "content_type__app_label", "codename"
        )
    }
    for name, (_, permissions) in ROLES.items():
        if missing := sorted(set(permissions) - known.keys()):
            raise LookupError(f"the role {name} names permissions that there are not: {', '.join(missing)}")
        group, _ = group_of.objects.using(using).get_or_create(name=name)
        group.permissions.set([known[permission] for permission in permissions])
