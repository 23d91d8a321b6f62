"""Exports: who may define one, what a definition must be, and every change of one, each on record and in step with the
schedule that Celery beat has of it."""

from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import parse_qsl, urlencode

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from audit.evidence import controls
from audit.exports import due, formats, queue, rights, schedules
from audit.exports.columns import COLUMNS, PERSONAL
from audit.exports.schedules import ScheduleError
from audit.models import Destination, Export, ExportRun
from audit.models.handing import OPEN
from audit.records_form import Directory, FilterForm, printable
from audit.staff_log import tell
from audit.viewer import tenants_of, viewer_of

MOST = 200  # of one member of staff
TASK = "audit.tasks.export_due"
BUNDLED = frozenset({"subject", "client"})
PRIVATE = ("name", "query", "reason")
LONGEST = Export._meta.get_field("query").max_length or 0


@dataclass(frozen=True, slots=True)
class Definition:
    """What an export is to be. `query` is the query string of a search (`audit.records_form`), `schedule` empty for one
    that only runs when asked, `destination` empty for download alone, `recipients` are numbers of staff."""

    name: str
    format: str
    query: str = ""
    columns: tuple[str, ...] = ()
    frameworks: tuple[str, ...] = ()
    personal: bool = False
    reason: str = ""
    schedule: str = ""
    destination: str = ""
    recipients: tuple[int, ...] = ()


# --- who may ----------------------------------------------------------------------------------------------------------


def may_make(user: Any) -> bool:
    """Whether somebody may define exports of their own."""
    return bool(user.has_perm("audit.view_record") and user.has_perm("audit.add_export"))


def may_change(user: Any, export: Export) -> bool:
    """Whether somebody may run, change, pause or delete this one: their own, or anybody's with the right to that."""
    own = export.owner == f"staff:{user.pk}"
    return bool((own and may_make(user)) or user.has_perm("audit.change_export"))


def _allow(user: Any, export: Export) -> None:
    if not may_change(user, export):
        raise PermissionDenied


def may_use(user: Any, export: Export) -> bool:
    """Whether somebody may say anew what it is, or have it made now. It runs with its owner's rights: so who says that
    reads records themselves, and of one with personal data sees those."""
    sees = user.has_perm("audit.view_record") and (not export.personal or user.has_perm("audit.view_personal"))
    return bool(sees and may_change(user, export))


def _allow_use(user: Any, export: Export) -> None:
    if not may_use(user, export):
        raise PermissionDenied


# --- what it must be --------------------------------------------------------------------------------------------------


def check(user: Any, given: Definition) -> Definition:
    """The definition with its search in one form. Raises ValidationError with words for each field that is wrong."""
    wrong: dict[str, str] = {}
    query = _query(given, wrong)
    _check_name(given, wrong)
    if given.format not in Export.FORMATS:
        wrong["format"] = "Choose a format."
    _check_columns(user, given, wrong)
    try:
        if given.schedule:
            schedules.following(schedules.parse(given.schedule), timezone.now())
    except (ScheduleError, StopIteration) as error:
        wrong["schedule"] = str(error) or "That never comes."
    if given.destination and not Destination.objects.filter(name=given.destination).exists():
        wrong["destination"] = "There is no such destination any more."
    active = get_user_model().objects.filter(pk__in=given.recipients, is_active=True, is_staff=True)
    if len(given.recipients) > MOST or active.count() != len(set(given.recipients)):
        wrong["recipients"] = "Recipients are members of staff."
    _check_confined(user, given, wrong)
    if wrong:
        raise ValidationError(wrong)
    return Definition(**{**_plain(given), "query": query, "schedule": " ".join(given.schedule.split())})


def _plain(given: Definition) -> dict[str, Any]:
    return {one.name: getattr(given, one.name) for one in fields(given)}


def _check_name(given: Definition, wrong: dict[str, str]) -> None:
    for field, most in (("name", 120), ("reason", 2000)):
        text = getattr(given, field)
        try:
            printable(text.replace("\n", " ").replace("\r", " ") if field == "reason" else text)
        except ValidationError as error:
            wrong[field] = error.messages[0]
        if len(text) > most:
            wrong[field] = f"That is longer than {most} characters."
        elif "@" in text:
            wrong[field] = f"A {field} must not hold an e-mail address."
    if not given.name.strip():
        wrong["name"] = "An export needs a name: its files are called by it."


def _check_confined(user: Any, given: Definition, wrong: dict[str, str]) -> None:
    """Who sees some tenants alone exports their records, whatever is searched for; and to where no other tenant's staff
    find them, nor are told of them."""
    if tenants_of(user) is None:
        return
    if given.format in rights.WHOLE:
        wrong["format"] = "That shows all of the log, and you see some tenants alone. Choose another format."
    if given.destination:
        wrong["destination"] = "Destinations are shared by all tenants: keep it for download here."
    if set(given.recipients) - {user.pk}:
        wrong["recipients"] = "You can have yourself told, and nobody else."


def _check_columns(user: Any, given: Definition, wrong: dict[str, str]) -> None:
    """Columns where the format has them; personal ones for who may, where the worker can, for a reason."""
    columns = set(given.columns)
    personal = bool(columns & set(PERSONAL))
    if given.format in formats.WITH_COLUMNS:
        if not columns:
            wrong["columns"] = "Choose at least one column."
        elif columns - {*COLUMNS, *PERSONAL} or len(columns) != len(given.columns):
            wrong["columns"] = "There is no such column."
    elif columns:
        wrong["columns"] = "This format has columns of its own."
    if given.personal != personal:
        wrong["columns"] = "Whether it has personal data is said by its columns."
    elif personal and not user.has_perm("audit.view_personal"):
        wrong["columns"] = "These show who users are: only who may see personal data can export them."
    elif personal and not settings.MUNIMENT_EXPORT_PERSONAL:
        wrong["columns"] = "Exports of this platform hold no personal data (MUNIMENT_EXPORT_PERSONAL)."
    elif personal and not given.reason.strip():
        wrong["reason"] = "Say why the file is to hold personal data."


def _query(given: Definition, wrong: dict[str, str]) -> str:
    """The search as its form writes it."""
    form = FilterForm(dict(parse_qsl(given.query)), Directory())
    if not form.is_valid():
        wrong["query"] = "The search has a mistake."
        return ""
    query, asked = urlencode(form.kept()), form.query()
    used = set(asked.filters) | set(asked.lookups)
    if len(query) > LONGEST:
        wrong["query"] = "The search is longer than what can be exported."
    elif given.format == "bundle" and used - BUNDLED:
        wrong["query"] = "A proof bundle is of a time, a user or a client: take the other filters away."
    elif given.format == "evidence" and used:
        wrong["query"] = "An evidence pack is of a time: take the filters away."
    try:
        if given.frameworks:
            controls.chosen(given.frameworks)
    except ValueError as error:
        wrong["frameworks"] = f"{error}"
    return query


# --- changes ----------------------------------------------------------------------------------------------------------


def make(user: Any, given: Definition) -> Export:
    """A new export of this user's. Raises PermissionDenied and ValidationError."""
    if not may_make(user):
        raise PermissionDenied
    checked, now = check(user, given), timezone.now()
    owner = f"staff:{user.pk}"
    if Export.objects.filter(owner=owner)[MOST - 1 : MOST].exists():
        raise ValidationError(f"{MOST} exports are the most; delete one first.")
    try:
        with transaction.atomic():
            export = Export.objects.create(owner=owner, created_at=now, due_from=now, **_columns(checked))
            _keep_in_step(export)
            _tell(user, export, "export.created", **_told(checked))
    except IntegrityError:
        raise _taken() from None
    return export


def change(user: Any, export: Export, given: Definition) -> Export:
    """Another definition for an export; its owner stays. A new schedule begins now. Raises PermissionDenied (also to
    who may not read records, and for one with personal data, to who may not see that) and ValidationError."""
    _allow_use(user, export)
    checked = check(user, given)
    columns = _columns(checked)
    due.due(export.pk)  # what came by the schedule of before
    try:
        with transaction.atomic():
            found = Export.objects.select_for_update().filter(pk=export.pk).first()
            if found is None:
                raise ValidationError("The export was deleted meanwhile.")
            _allow_use(user, found)
            changed = sorted(name for name, value in columns.items() if getattr(found, name) != value)
            if "schedule" in changed:
                found.due_from = timezone.now()
            for name, value in columns.items():
                setattr(found, name, value)
            found.save(update_fields=[*columns, "due_from"])
            _keep_in_step(found)
            if changed:
                _tell(user, found, "export.changed", changed=changed, **_told(checked))
    except IntegrityError:
        raise _taken() from None
    return found


def enable(user: Any, export: Export) -> None:
    """Let its schedule run again, from where it stood: slots of meanwhile are caught up. Raises PermissionDenied."""
    _switch(user, export, True)


def disable(user: Any, export: Export) -> None:
    """Pause its schedule; runs that have begun go on. Raises PermissionDenied."""
    _switch(user, export, False)


def _switch(user: Any, export: Export, on: bool) -> None:
    _allow(user, export)
    with transaction.atomic():
        found = Export.objects.select_for_update().filter(pk=export.pk).first()
        if found is None or found.enabled == on:
            return
        found.enabled, found.words, found.failures = on, "", 0
        found.save(update_fields=["enabled", "words", "failures"])
        _keep_in_step(found)
        _tell(user, found, "export.enabled" if on else "export.disabled")
    if on:
        due.due(export.pk)


def remove(user: Any, export: Export) -> None:
    """Delete an export. Its open runs are stopped, and its files stay for their time. Raises PermissionDenied."""
    _allow(user, export)
    with transaction.atomic():
        _tell(user, export, "export.deleted")
        open_runs = ExportRun.objects.filter(export=export.pk, state__in=OPEN)
        open_runs.update(cancel=True, cancelled_by=f"staff:{user.pk}")
        queue.send(open_runs.values_list("pk", flat=True))
        PeriodicTask.objects.filter(name=_task_name(export)).delete()
        Export.objects.filter(pk=export.pk).delete()


def ask(user: Any, export: Export) -> ExportRun:
    """Run it now, over its search's own time. Raises PermissionDenied (also for one with personal data, to who may not
    see that), and ValidationError where its search cannot be made."""
    _allow_use(user, export)
    viewer = viewer_of(user)
    try:
        return due.asked(export, viewer.actor, viewer.name)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def cancel(user: Any, run: ExportRun, export: Export) -> bool:
    """Have a run stopped at its next page; False where it is over already. Raises PermissionDenied."""
    _allow(user, export)
    with transaction.atomic():
        going = ExportRun.objects.filter(pk=run.pk, export=export.pk, state__in=OPEN, cancel=False)
        stopped = bool(going.update(cancel=True, cancelled_by=f"staff:{user.pk}", retry_at=None))
        queue.send([run.pk])
    return stopped


def retry(user: Any, run: ExportRun, export: Export) -> bool:
    """Try a run that failed or was cancelled again, or one that waits to be tried again now; False where there is
    nothing to try. Raises PermissionDenied."""
    _allow(user, export)
    with transaction.atomic():
        found = ExportRun.objects.select_for_update().filter(pk=run.pk, export=export.pk).first()
        if found is None or (found.state in OPEN and found.retry_at is None) or found.state == "done":
            return False
        delivered = found.state == "delivering" or (found.state == "failed" and bool(found.sha256))
        found.state = "delivering" if delivered else "waiting"
        found.cancel, found.cancelled_by, found.tries, found.retry_at, found.ended_at = False, "", 0, None, None
        found.save(update_fields=["state", "cancel", "cancelled_by", "tries", "retry_at", "ended_at"])
        viewer = viewer_of(user)
        due.tell_run(found, by=viewer.actor)
        queue.send([run.pk])
    return True


def _columns(given: Definition) -> dict[str, Any]:
    found = asdict(given)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _taken() -> ValidationError:
    return ValidationError({"name": "There is an export of this name already."})


def _told(given: Definition) -> dict[str, Any]:
    """Of a definition what a record may say; what is free text stays beside it."""
    columns = _columns(given)
    private = {f"export_{name}" if name != "reason" else name: columns.pop(name) for name in PRIVATE}
    return {"private": {name: text for name, text in private.items() if text}, **columns}


def _tell(user: Any, export: Export, action: str, *, private: dict[str, Any] | None = None, **members: Any) -> None:
    viewer = viewer_of(user)
    tell(viewer.actor, viewer.name, action, private, export=export.pk, owner=export.owner, **members)


# --- beat -------------------------------------------------------------------------------------------------------------


def _task_name(export: Export) -> str:
    return f"export {export.pk}"


def _keep_in_step(export: Export) -> None:
    """What beat knows of the export is what its row says."""
    if not export.schedule:
        PeriodicTask.objects.filter(name=_task_name(export)).delete()
        return
    minute, hour, day, month, weekday = schedules.parse(export.schedule).crontab
    found = {
        "minute": minute, "hour": hour, "day_of_month": day, "month_of_year": month, "day_of_week": weekday,
        "timezone": "UTC",
    }  # fmt: skip
    # Nothing keeps two of the same from being there.
    crontab = CrontabSchedule.objects.filter(**found).order_by("pk").first() or CrontabSchedule.objects.create(**found)
    PeriodicTask.objects.update_or_create(
        name=_task_name(export),
        defaults={
            "task": TASK, "args": f"[{export.pk}]", "crontab": crontab, "interval": None, "enabled": export.enabled,
            "expire_seconds": 3600,
        },
    )  # fmt: skip
