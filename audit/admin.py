"""The pages of what audit owns: users (never their identifiers, in this version), the inbox, and the parts of the
log. All are for looking; a user can be blocked, unblocked and signed out everywhere, each with a reason."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from audit.admin_base import Action, ReadOnlyAdmin, bytes_hex
from audit.models import Outbox, PublishedKey, Sighting, Subject
from audit.templatetags.muniment import when


@admin.register(Subject)
class SubjectAdmin(ReadOnlyAdmin):
    """Users by uid. Identifiers are personal data and are not shown."""

    intro = "Everybody whose token was ever verified, by uid. Who they are is protected and not shown here."
    empty = "Nobody has called yet. A user appears at the first call whose token is genuine."
    list_display = ["uid", "issuer", "seen", "state"]
    search_fields = ["uid__exact"]
    search_help_text = "A whole uid: usr_…"
    ordering = ["-first_seen"]
    fields = ["uid", "issuer", "seen", "state", "blocked", "signed_out", "calls"]
    can_act = [
        Action(
            "block", "Block", "From the next call on, every call for this user is refused, through every client.",
            "block", lambda s: s.blocked_at is None and s.erased_at is None, danger=True,
        ),
        Action(
            "unblock", "Unblock", "Calls for this user are decided by the policy again.",
            "unblock", lambda s: s.blocked_at is not None,
        ),
        Action(
            "sign-out", "Sign out everywhere",
            "Every token that was issued before now is refused; the user signs in again in each client.",
            "sign_out", lambda s: s.erased_at is None, danger=True,
        ),
    ]  # fmt: skip

    @admin.display(description="first seen", ordering="first_seen")
    def seen(self, user: Subject) -> str:
        return when(user.first_seen)

    @admin.display(description="blocked since")
    def blocked(self, user: Subject) -> str:
        return when(user.blocked_at, "not blocked")

    @admin.display(description="tokens refused that are older than")
    def signed_out(self, user: Subject) -> str:
        return when(user.signed_out_at, "never signed out everywhere")

    @admin.display(description="state")
    def state(self, user: Subject) -> str:
        if user.erased_at:
            return format_html('<span class="pill plain">{}</span>', "Erased")
        kind, words = ("deny", "Blocked") if user.blocked_at else ("allow", "Active")
        return format_html('<span class="pill {}">{}</span>', kind, words)

    @admin.display(description="records")
    def calls(self, user: Subject) -> str:
        url = f"{reverse('admin:records')}?window=30d&subject={user.uid}"
        return format_html('<a href="{}">Calls of the last 30 days</a>', url)

    def block(self, request: HttpRequest, user: Subject, data: dict[str, Any]) -> str:
        """The next call is refused."""
        user.blocked_at = timezone.now()
        user.save(update_fields=["blocked_at"])
        return f"{user} is blocked: the next call is refused."

    def unblock(self, request: HttpRequest, user: Subject, data: dict[str, Any]) -> str:
        """Decided by policy again."""
        user.blocked_at = None
        user.save(update_fields=["blocked_at"])
        return f"{user} is not blocked any more."

    def sign_out(self, request: HttpRequest, user: Subject, data: dict[str, Any]) -> str:
        """Tokens issued before now are refused."""
        user.signed_out_at = timezone.now()
        user.save(update_fields=["signed_out_at"])
        return f"{user} is signed out: tokens issued before now are refused."


@admin.register(Sighting)
class SightingAdmin(ReadOnlyAdmin):
    """The inbox."""

    intro = (
        "Clients and tools that calls named, but nobody registered. All of those calls were refused."
        " To let them in, add the OAuth client id to a client, or have the backend declare the tool."
    )
    empty = "The inbox is empty: no call has named an unknown client or tool."
    list_display = ["name", "kind", "source", "count", "first", "last"]
    list_filter = ["kind"]
    ordering = ["-last_seen"]

    @admin.display(description="first seen", ordering="first_seen")
    def first(self, sighting: Sighting) -> str:
        return when(sighting.first_seen)

    @admin.display(description="last seen", ordering="last_seen")
    def last(self, sighting: Sighting) -> str:
        return when(sighting.last_seen)


@admin.register(Outbox)
class OutboxAdmin(ReadOnlyAdmin):
    """What waits to be recorded, and what was lately."""

    intro = (
        "Changes on their way into the log. A web process takes them within a second; drained ones leave after a week."
    )
    empty = "Nothing waits to be recorded."
    list_display = ["id", "kind", "what", "version", "actor", "made", "where"]
    list_filter = ["kind"]
    ordering = ["-id"]
    fields = ["kind", "what", "version", "actor", "made", "old", "new", "members", "where"]

    @admin.display(description="change")
    def what(self, entry: Outbox) -> str:
        return f"{entry.operation or ''} {entry.table_name or ''} {entry.row_key or ''}".strip() or "—"

    @admin.display(description="made", ordering="id")
    def made(self, entry: Outbox) -> str:
        return when(entry.at)

    @admin.display(description="in the log")
    def where(self, entry: Outbox) -> str:
        return "waiting" if entry.record_index is None else f"record {entry.record_index:,}"


@admin.register(PublishedKey)
class PublishedKeyAdmin(ReadOnlyAdmin):
    """Public keys."""

    intro = "The public keys with which others check what Muniment signed. They are kept for ever."
    empty = "No key yet: the first web process publishes its own."
    list_display = ["key_id", "use", "since", "until"]
    fields = ["key_id", "use", "public_hex", "since", "until"]

    @admin.display(description="from", ordering="not_before")
    def since(self, key: PublishedKey) -> str:
        return when(key.not_before)

    @admin.display(description="until", ordering="not_after")
    def until(self, key: PublishedKey) -> str:
        return when(key.not_after, "in use")

    @admin.display(description="public key")
    def public_hex(self, key: PublishedKey) -> str:
        return bytes_hex(key.public)
