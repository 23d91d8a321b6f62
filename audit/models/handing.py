"""Handing the trail over: exports and their runs, where they go, downloads, and the streams to a SIEM. No foreign keys:
a run outlives the export that it was made for."""

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

OPEN = ["waiting", "running", "delivering"]


class Export(models.Model):
    """A saved search that is handed over as a file: columns, format, schedule, destination, recipients. Runs with the
    rights that its owner has when it runs."""

    FORMATS = ["jsonl", "csv", "parquet", "ocsf", "bundle", "evidence"]

    name = models.CharField(max_length=120)
    owner = models.CharField(max_length=120, help_text="staff:<id>")
    query = models.CharField(max_length=2000, blank=True, help_text="the query string of the search")
    columns = ArrayField(models.CharField(max_length=40), default=list, blank=True)
    format = models.CharField(max_length=10, choices=[(f, f) for f in FORMATS])
    frameworks = ArrayField(models.CharField(max_length=20), default=list, blank=True, help_text="of an evidence pack")
    personal = models.BooleanField(default=False, help_text="with personal data")
    reason = models.TextField(max_length=2000, blank=True, default="", help_text="why with personal data")
    schedule = models.CharField(
        max_length=100, blank=True, default="", help_text="hourly, daily, weekly, monthly or five fields of a crontab"
    )
    destination = models.CharField(max_length=64, blank=True, default="", help_text="name; empty: for download alone")
    recipients = ArrayField(models.BigIntegerField(), default=list, blank=True, help_text="staff, told by e-mail")
    enabled = models.BooleanField(default=True)
    failures = models.IntegerField(default=0, help_text="in a row")
    words = models.TextField(default="", help_text="why it was disabled")
    created_at = models.DateTimeField()
    due_from = models.DateTimeField(null=True, help_text="slots after this one are due")

    class Meta:
        default_permissions = ("view", "add", "change")
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["owner", "name"], name="export_once")]

    def __str__(self) -> str:
        return self.name


class ExportRun(models.Model):
    """One making of an export's file: of one slot of its schedule, or asked for once. All that is needed to go on after
    a crash is here."""

    STATES = [*OPEN, "done", "failed", "cancelled"]

    export = models.BigIntegerField(help_text="Export")
    owner = models.CharField(max_length=120, help_text="staff:<id>; with whose rights")
    slot = models.DateTimeField(help_text="when it was due")
    asked_by = models.CharField(max_length=120, default="system", help_text="system, or staff:<id>")
    since = models.DateTimeField()
    until = models.DateTimeField()
    state = models.CharField(max_length=10, choices=[(s, s) for s in STATES], default="waiting")
    words = models.TextField(default="", help_text="why it waits, or failed")
    attempts = models.IntegerField(default=0, help_text="how often a worker took it up")
    tries = models.IntegerField(default=0, help_text="that failed, of those that are made by themselves")
    retry_at = models.DateTimeField(null=True, help_text="not tried again before")
    cancel = models.BooleanField(default=False, help_text="somebody asked to stop it")
    cancelled_by = models.CharField(max_length=120, default="", help_text="staff:<id>")
    personal = models.BooleanField(default=False)
    definition = models.JSONField(default=dict, help_text="query, columns, format, frameworks: as the export was then")
    first = models.BigIntegerField(null=True, help_text="index of the first record of the range")
    last = models.BigIntegerField(null=True, help_text="index of the last one; below first where there is none")
    next = models.BigIntegerField(null=True, help_text="index from which it goes on")
    offset = models.BigIntegerField(default=0, help_text="bytes that are safe")
    records = models.BigIntegerField(default=0, help_text="written so far")
    counts = models.JSONField(default=dict, help_text="by decision")
    file = models.CharField(max_length=255, default="")
    bytes = models.BigIntegerField(null=True)
    sha256 = models.CharField(max_length=64, default="", help_text="of the file, in hexadecimal")
    manifest = models.TextField(default="", help_text="as it lies beside the file")
    created_at = models.DateTimeField()
    began_at = models.DateTimeField(null=True)
    seen_at = models.DateTimeField(null=True, help_text="last sign of its worker")
    ended_at = models.DateTimeField(null=True)
    delivered_at = models.DateTimeField(null=True)
    destination = models.CharField(max_length=64, default="")
    mailed_at = models.DateTimeField(null=True)
    mailed = ArrayField(models.BigIntegerField(), default=list, help_text="staff who were told by e-mail")
    removed_at = models.DateTimeField(null=True, help_text="when the kept file was deleted")
    erased_since = ArrayField(
        models.CharField(max_length=40), default=list, help_text="users in it who were erased afterwards"
    )

    class Meta:
        verbose_name = "export run"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["export", "slot"], name="export_run_once")]
        indexes = [
            # query: the sweeper
            models.Index(
                fields=["created_at"],
                name="export_run_open",
                condition=Q(state__in=["waiting", "running", "delivering"]),
            ),
        ]

    def __str__(self) -> str:
        return self.file or f"export {self.export}, {self.slot:%Y-%m-%d %H:%M}"


class Destination(models.Model):
    """A place that exports can be delivered to, as the worker found it configured, and how it does. Never its
    credentials: those are in the worker's environment."""

    name = models.CharField(primary_key=True, max_length=64)
    kind = models.CharField(max_length=10)
    place = models.CharField(max_length=255, help_text="without credentials")
    seen_at = models.DateTimeField(help_text="when the worker last had it configured")
    reached_at = models.DateTimeField(null=True)
    tried_at = models.DateTimeField(null=True)
    failures = models.IntegerField(default=0, help_text="in a row")
    error = models.TextField(default="")

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.name


class Stream(models.Model):
    """A continuous delivery of records to a SIEM, as the worker found it configured: where its cursor is, and how it
    does. Never its credentials."""

    name = models.CharField(primary_key=True, max_length=64)
    kind = models.CharField(max_length=10, help_text="webhook or syslog")
    place = models.CharField(max_length=255, help_text="without credentials")
    next = models.BigIntegerField(help_text="index of the next record to deliver")
    sent = models.BigIntegerField(default=0, help_text="records delivered")
    skipped = models.BigIntegerField(default=0, help_text="records that retention had deleted before they were sent")
    seen_at = models.DateTimeField(help_text="when the worker last had it configured")
    sent_at = models.DateTimeField(null=True)
    tried_at = models.DateTimeField(null=True)
    retry_at = models.DateTimeField(null=True)
    failing_since = models.DateTimeField(null=True)
    failures = models.IntegerField(default=0, help_text="in a row")
    error = models.TextField(default="")
    paused_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ("view", "change")

    def __str__(self) -> str:
        return self.name


class DeadLetter(models.Model):
    """A record that a stream's receiver refused for good, so that the others could go on."""

    stream = models.CharField(max_length=64)
    index = models.BigIntegerField()
    record = models.UUIDField()
    words = models.TextField(help_text="what the receiver said, in our words")
    at = models.DateTimeField()
    retries = models.IntegerField(default=0)
    asked_at = models.DateTimeField(null=True, help_text="when staff asked to send it again; null once it was")
    settled_at = models.DateTimeField(null=True, help_text="when it was taken after all, or let go")

    class Meta:
        verbose_name = "dead letter"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["stream", "index"], name="dead_letter_once")]
        # query: audit.streams.delivering, what was refused since; its page
        indexes = [
            models.Index(fields=["stream", "at"], name="dead_letter_open", condition=Q(settled_at__isnull=True)),
        ]

    def __str__(self) -> str:
        return f"{self.stream} {self.index}"
