"""The pages of what audit owns: users (never their identifiers), the inbox, and the parts of the
log, whose soundness has a page of its own (log_page). All are for looking; a user can be blocked, unblocked and signed
out everywhere, each with a reason."""

from datetime import timedelta
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import OuterRef, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join

from audit import search, tenants
from audit.admin_base import Action, ReadOnlyAdmin, Refused, bytes_hex
from audit.log_health import SCOPES, kind_of
from audit.log_page import runs
from audit.models import Alert, Checkpoint, Outbox, PublishedKey, Sighting, Subject, Verification
from audit.record_around import link, window_of
from audit.templatetags.muniment import when
from audit.viewer import tenants_of, viewer_of
from muniment.findings import counted


class StateFilter(admin.SimpleListFilter):
    """Users whose access was ended, by how it was."""

    title = "how access ended"
    parameter_name = "ended"
    COLUMNS: ClassVar[dict[str, str]] = {
        "blocked": "blocked_at", "deactivated": "deactivated_at", "signed-out": "signed_out_at", "erased": "erased_at",
    }  # fmt: skip

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("blocked", "Blocked by staff"), ("deactivated", "Deactivated by the identity provider"),
            ("signed-out", "Signed out everywhere"), ("erased", "Erased"),
        ]  # fmt: skip

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        column = self.COLUMNS.get(self.value() or "")
        return queryset.filter(**{f"{column}__isnull": False}) if column else queryset


@admin.register(Subject)
class SubjectAdmin(ReadOnlyAdmin):
    """Users by uid. Identifiers are personal data and are not shown."""

    intro = (
        "Everybody whose token was ever verified, by uid. Who they are is protected and not shown here. Somebody whose"
        " e-mail address or sub you know is found with Find a person."
    )
    empty = "Nobody has called yet. A user appears at the first call whose token is genuine."
    list_display = ["uid", "issuer", "seen", "active", "state"]
    list_filter = [StateFilter]
    search_fields = ["uid__exact"]
    search_help_text = "A whole uid: usr_…"
    ordering = ["-first_seen"]
    fields = ["uid", "issuer", "seen", "active", "state", "blocked", "deactivated", "signed_out", "leads"]
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
            "Every token that was issued before now is refused, so that this user is signed out of every AI client, and"
            " signs in again in each.",
            "sign_out", lambda s: s.erased_at is None, danger=True,
        ),
    ]  # fmt: skip

    @admin.display(description="first seen", ordering="first_seen")
    def seen(self, user: Subject) -> str:
        return when(user.first_seen)

    @admin.display(description="blocked since")
    def blocked(self, user: Subject) -> str:
        return when(user.blocked_at, "not blocked")

    @admin.display(description="deactivated by the identity provider since")
    def deactivated(self, user: Subject) -> str:
        return when(user.deactivated_at, "not deactivated")

    @admin.display(description="tokens refused that are older than")
    def signed_out(self, user: Subject) -> str:
        return when(user.signed_out_at, "never signed out everywhere")

    @admin.display(description="state")
    def state(self, user: Subject) -> str:
        if user.erased_at:
            return format_html('<span class="pill plain">{}</span>', "Erased")
        kind, words = ("deny", "Blocked") if user.blocked_at else ("allow", "Active")
        if user.deactivated_at and not user.blocked_at:
            kind, words = "deny", "Deactivated"
        return format_html('<span class="pill {}">{}</span>', kind, words)

    @admin.display(description="last activity")
    def active(self, user: Subject) -> str:
        at = getattr(user, "last_activity", None)
        if at is None:
            return "none in the last year"
        url = reverse("admin:timeline", args=["user", user.uid])
        return format_html('<a href="{}">{}</a>', f"{url}?window={window_of(at) or '1y'}", when(at))

    @admin.display(description="more of them")
    def leads(self, user: Subject) -> str:
        found = [
            *link("Everything of this user", "admin:timeline", "user", user.uid),
            *link("A report of all that was done with their data", "admin:person_report", user.uid),
            *(link("Erase this user", "admin:erase", user.uid) if getattr(user, "may_erase", False) else []),
        ]
        return format_html_join(", ", '<a href="{}">{}</a>', [(one.url, one.words) for one in found])

    def get_list_display(self, request: HttpRequest) -> Any:
        """When a user was active last is read from records, which not everybody may."""
        return self._seen_by(request, self.list_display, "active")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self._seen_by(request, self.fields, "active", "leads")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.get_fields(request, obj)

    def _seen_by(self, request: HttpRequest, names: Any, *of_records: str) -> list[str]:
        may = request.user.has_perm("audit.view_record")
        return [name for name in names if may or name not in of_records]

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """One user, with when they were active last."""
        user: Any = super().get_object(request, object_id, from_field)
        if user is not None:
            user.may_erase = user.erased_at is None and request.user.has_perm("audit.add_erasure")
        return note_activity(request, [user])[0] if user is not None else None

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The page of the list, each with when they were active last."""
        found = super().get_changelist_instance(request)
        found.result_list = note_activity(request, list(found.result_list))
        return found

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """An address has no business in a URL; one that was typed there by mistake is not searched for."""
        if "@" in request.GET.get("q", ""):
            messages.warning(request, "Users are listed by uid. Find a person by e-mail address here.")
            return HttpResponseRedirect(reverse("admin:people"))
        empty = self.empty if tenants_of(request.user) is None else "Nobody of your tenants has called yet."
        return super().changelist_view(request, {"empty": empty, **(extra_context or {})})

    def get_queryset(self, request: HttpRequest) -> Any:
        """Those whom the viewer may see."""
        return super().get_queryset(request) & tenants.users(tenants_of(request.user))

    def offered(self, request: HttpRequest, obj: Any) -> list[dict[str, Any]]:
        """Nothing where it would concern tenants that are not the viewer's."""
        return super().offered(request, obj) if self._may_change(request, obj) else []

    def _may_change(self, request: HttpRequest, user: Subject) -> bool:
        return tenants.may_change(tenants_of(request.user), user.uid)

    def _do(self, request: HttpRequest, action: Action, obj: Any, data: dict[str, Any]) -> str:
        """Asked again where the change is made."""
        if not self._may_change(request, obj):
            raise Refused("This user is also of tenants that are not yours. Ask somebody who is not confined.")
        return super()._do(request, action, obj, data)

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
        """Tokens issued before now are refused. A logout by a clock that is ahead of ours is not taken back; it is a
        change all the same, so that it is on record."""
        now, before = timezone.now(), user.signed_out_at
        user.signed_out_at = now if before is None else max(now, before + timedelta(microseconds=1))
        user.save(update_fields=["signed_out_at"])
        return f"{user} is signed out: tokens issued before now are refused."


def note_activity(request: HttpRequest, users: list[Any]) -> list[Any]:
    """The users, each with `last_activity`: the time of their newest call within a year, by one index look for each.
    None for a viewer who may not read records."""
    viewer, now = viewer_of(request.user), timezone.now()
    if viewer.records and users:
        calls = search.visible(viewer, now - search.WINDOWS["1y"], now + timedelta(minutes=5))
        newest = calls.filter(subject=OuterRef("uid"), type="decision").order_by("-at").values("at")[:1]
        known = Subject.objects.filter(uid__in=[user.uid for user in users]).annotate(last=Subquery(newest))
        times = dict(known.values_list("uid", "last"))
        for user in users:
            user.last_activity = times.get(user.uid)
    return users


@admin.register(Sighting)
class SightingAdmin(ReadOnlyAdmin):
    """All that calls named and nobody had registered, decided on or not. It is decided in the inbox (clients.inbox)."""

    empty = "No call has ever named an unknown client or tool."
    list_display = ["name", "kind", "source", "count", "first", "last", "ignored"]
    list_filter = ["kind", ("ignored_at", admin.EmptyFieldListFilter)]
    ordering = ["-last_seen"]
    fields = ["name", "kind", "source", "count", "first", "last", "ignored"]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """With the way to the page where staff decide."""
        intro = format_html(
            "All that calls named and nobody had registered; what waits for a decision is in the"
            ' <a href="{}">inbox</a>. What became known since stays here until it is attached.',
            reverse("admin:inbox"),
        )
        return super().changelist_view(request, {"intro": intro, "title": "Sightings", **(extra_context or {})})

    @admin.display(description="first seen", ordering="first_seen")
    def first(self, sighting: Sighting) -> str:
        return when(sighting.first_seen)

    @admin.display(description="last seen", ordering="last_seen")
    def last(self, sighting: Sighting) -> str:
        return when(sighting.last_seen)

    @admin.display(description="ignored", ordering="ignored_at")
    def ignored(self, sighting: Sighting) -> str:
        return when(sighting.ignored_at, "no")


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


@admin.register(Checkpoint)
class CheckpointAdmin(ReadOnlyAdmin):
    """Signed states of the log."""

    intro = "Each is the signed state of the whole log at one moment. Those kept elsewhere can be compared with it."
    empty = "No checkpoint yet: the sealer signs the first one. Start it with manage.py seal."
    list_display = ["records", "log", "signed", "root_hex"]
    ordering = ["-log", "-size"]
    fields = ["records", "log", "signed", "root_hex", "key_id", "signed_note"]

    def name_of(self, obj: Any) -> str:
        """By its size, as everywhere."""
        return f"Checkpoint of {counted(obj.size, 'record')}"

    @admin.display(description="records", ordering="size")
    def records(self, checkpoint: Checkpoint) -> str:
        return f"{checkpoint.size:,}"

    @admin.display(description="signed", ordering="at")
    def signed(self, checkpoint: Checkpoint) -> str:
        return when(checkpoint.at)

    @admin.display(description="root")
    def root_hex(self, checkpoint: Checkpoint) -> str:
        return format_html('<span class="mono">{}</span>', bytes_hex(checkpoint.root))

    @admin.display(description="note")
    def signed_note(self, checkpoint: Checkpoint) -> str:
        return format_html('<pre class="raw" tabindex="0">{}</pre>', checkpoint.note)


@admin.register(Alert)
class AlertAdmin(ReadOnlyAdmin):
    """What a person had to look at."""

    intro = "What somebody must look at, or had to. Each raise and each end is also a notice in the log itself."
    empty = "No alert was ever raised."
    list_display = ["title", "about", "raised", "over"]
    ordering = ["-raised_at", "-id"]
    fields = ["title", "about", "words", "remedy", "raised", "seen", "over"]

    def name_of(self, obj: Any) -> str:
        """What it means."""
        return kind_of(obj).title

    @admin.display(description="alert")
    def title(self, alert: Alert) -> str:
        return kind_of(alert).title

    @admin.display(description="what to do")
    def remedy(self, alert: Alert) -> str:
        return kind_of(alert).remedy or "—"

    @admin.display(description="raised", ordering="raised_at")
    def raised(self, alert: Alert) -> str:
        return when(alert.raised_at)

    @admin.display(description="last seen", ordering="seen_at")
    def seen(self, alert: Alert) -> str:
        return when(alert.seen_at)

    @admin.display(description="over", ordering="cleared_at")
    def over(self, alert: Alert) -> str:
        return when(alert.cleared_at, format_html('<span class="pill deny">{}</span>', "Open"))


@admin.register(Verification)
class VerificationAdmin(ReadOnlyAdmin):
    """Runs of the log's verification."""

    intro = "Each time the log was verified, from its records to its signed state."
    empty = "The log has not been verified yet. It is every night; to do it now: manage.py verify_log."
    list_display = ["what", "began", "ended", "records", "result"]
    list_filter = ["kind"]
    ordering = ["-began_at"]
    fields = ["what", "began", "ended", "looked_at", "result", "found"]

    def name_of(self, obj: Any) -> str:
        """What was verified."""
        return f"Verification of {SCOPES.get(obj.kind, obj.kind)}"

    @admin.display(description="of", ordering="kind")
    def what(self, run: Verification) -> str:
        return SCOPES.get(run.kind, run.kind)

    @admin.display(description="looked at")
    def looked_at(self, run: Verification) -> str:
        return f"{counted(run.records, 'record')} of {run.size:,} that were sealed"

    @admin.display(description="began", ordering="began_at")
    def began(self, run: Verification) -> str:
        return when(run.began_at)

    @admin.display(description="ended", ordering="ended_at")
    def ended(self, run: Verification) -> str:
        return when(run.ended_at, "running or interrupted")

    @admin.display(description="result")
    def result(self, run: Verification) -> str:
        pill = runs([run], most=0)[0].pill
        return format_html('<span class="pill {}">{}</span>', pill.kind, pill.words)

    @admin.display(description="findings")
    def found(self, run: Verification) -> str:
        one = runs([run], most=len(run.findings))[0]
        shown = render_to_string("admin/log_findings.html", {"findings": one.findings, "more": one.more})
        return shown or "none"
