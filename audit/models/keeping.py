"""How long the log is kept, and what ends or stops that: retention rules and their runs, legal holds, erasures. As
everywhere in evidence there are no foreign keys: a hold outlives the client it names."""

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q


class Guard(models.Model):
    """The one row under whose lock holds change, partitions are dropped, rows are deleted and users are erased, so that
    a hold which was placed is seen by whatever deletes next (DESIGN.md section 6, Storage; `audit.guard`)."""

    id = models.SmallIntegerField(primary_key=True, default=1)

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=Q(id=1), name="guard_single")]

    def __str__(self) -> str:
        return "guard"


class Hold(models.Model):
    """A legal hold: while it is in force nothing that it covers is deleted or erased. What it names must all match; a
    record is covered where every given criterion does. Placed by one person; released by two."""

    matter = models.CharField(max_length=120, help_text="number of the matter; names nobody")
    reason = models.TextField(max_length=2000)
    subject = models.CharField(max_length=40, null=True, blank=True, help_text="uid")
    client = models.CharField(max_length=64, null=True, blank=True, help_text="slug")
    tool = models.CharField(max_length=128, null=True, blank=True)
    backend = models.CharField(max_length=64, null=True, blank=True, help_text="slug")
    tenant = models.CharField(max_length=255, null=True, blank=True)
    since = models.DateTimeField(null=True, blank=True, help_text="records from then on")
    until = models.DateTimeField(null=True, blank=True, help_text="records before then")
    placed_by = models.CharField(max_length=120, help_text="staff:<id>")
    placed_at = models.DateTimeField()
    release_asked_by = models.CharField(max_length=120, null=True, blank=True)
    release_asked_at = models.DateTimeField(null=True, blank=True)
    release_reason = models.TextField(max_length=2000, blank=True, default="")
    released_by = models.CharField(max_length=120, null=True, blank=True)
    released_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "legal hold"
        default_permissions = ("view", "add")
        permissions = [("release_hold", "Can release a legal hold that another asked to release")]
        ordering = ["-placed_at"]
        constraints = [
            models.CheckConstraint(
                name="hold_names_something",
                condition=Q(subject__isnull=False) | Q(client__isnull=False) | Q(tool__isnull=False)
                | Q(backend__isnull=False) | Q(tenant__isnull=False) | Q(since__isnull=False) | Q(until__isnull=False),
            ),
            models.CheckConstraint(
                name="hold_range", condition=Q(since=None) | Q(until=None) | Q(since__lt=F("until"))
            ),
            models.CheckConstraint(
                name="hold_released_by_two",
                condition=Q(released_at=None, released_by=None)
                | (Q(released_at__isnull=False, released_by__isnull=False, release_asked_by__isnull=False)
                   & ~Q(released_by=F("release_asked_by"))),
            ),
        ]  # fmt: skip
        indexes = [
            # query: audit.holds.active
            models.Index(fields=["placed_at"], name="hold_active", condition=Q(released_at=None)),
        ]

    def __str__(self) -> str:
        return self.matter


class RetentionRule(models.Model):
    """How long records of a kind are kept, and on what legal basis. Of the rules that fit a record the most specific
    counts, of equally specific ones the longest. A record that no rule fits is kept."""

    type = models.CharField(max_length=20, null=True, blank=True, help_text="type of record; empty: any")
    backend = models.CharField(max_length=64, null=True, blank=True, help_text="slug")
    client = models.CharField(max_length=64, null=True, blank=True, help_text="slug")
    tenant = models.CharField(max_length=255, null=True, blank=True)
    sensitive = models.BooleanField(null=True, blank=True, help_text="calls of sensitive tools, or of all others")
    days = models.PositiveIntegerField()
    basis = models.TextField(max_length=2000, help_text="the legal basis: why so long, and no longer")
    changed_by = models.CharField(max_length=120, help_text="staff:<id>")
    changed_at = models.DateTimeField()

    class Meta:
        verbose_name = "retention rule"
        default_permissions = ("view", "change")
        constraints = [
            models.UniqueConstraint(
                fields=["type", "backend", "client", "tenant", "sensitive"], name="retention_rule_once",
                nulls_distinct=False,
            ),
            models.CheckConstraint(condition=Q(days__gte=1, days__lte=36500), name="retention_rule_days"),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.days} days"


class RetentionFloor(models.Model):
    """What to do with rules that keep for a shorter time than a regulation asks (`audit.retention.floors` has the
    presets)."""

    MODES = ["off", "warn", "refuse"]

    preset = models.CharField(primary_key=True, max_length=30)
    mode = models.CharField(max_length=6, choices=[(m, m) for m in MODES])

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.preset}: {self.mode}"


class RetentionRun(models.Model):
    """One run of retention: what it set out to delete, how far it is, and why it failed, if it did."""

    STATES = ["deciding", "waiting", "deleting", "done", "failed"]

    state = models.CharField(max_length=10, choices=[(s, s) for s in STATES])
    began_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    due = models.BigIntegerField(default=0, help_text="records that it set out to delete")
    deleted = models.BigIntegerField(default=0)
    held = models.BigIntegerField(default=0, help_text="records that were due, and stay under a hold")
    rules = models.JSONField(default=list, help_text="the rules that it follows; once they change it goes no further")
    words = models.TextField(default="", help_text="why it waits or failed")

    class Meta:
        default_permissions = ()
        indexes = [models.Index(fields=["-began_at"], name="retention_run_newest")]  # query: the retention page

    def __str__(self) -> str:
        return f"{self.state} {self.began_at:%Y-%m-%d %H:%M}"


class RetentionStep(models.Model):
    """A part of a run: ranges of one month that one retention record names. They go only once that record is sealed."""

    run = models.BigIntegerField(help_text="RetentionRun")
    month = models.DateField()
    outbox = models.BigIntegerField(help_text="the entry that becomes the record")
    record = models.BigIntegerField(null=True, help_text="index of that record, once the log has it")
    ranges = models.JSONField(default=list, help_text="pairs of first index and size, as the record names them")
    holders = models.JSONField(default=list, help_text="instead: daily keys of unestablished callers to be destroyed")
    due = models.BigIntegerField()
    deleted = models.BigIntegerField(default=0)
    done_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()
        indexes = [models.Index(fields=["run"], name="retention_step_of_run")]  # query: audit.retention.running

    def __str__(self) -> str:
        return f"run {self.run}, {self.month:%Y-%m}"


class Erasure(models.Model):
    """That a user is to be forgotten, or was (GDPR Art. 17). Kept for ever: it names the user by uid alone."""

    STATES = ["asked", "refused", "erased", "complete"]

    subject = models.CharField(max_length=40, help_text="uid")
    state = models.CharField(max_length=10, choices=[(s, s) for s in STATES])
    reference = models.CharField(max_length=120, help_text="number of the request; names nobody")
    reason = models.TextField(max_length=2000)
    asked_by = models.CharField(max_length=120, help_text="staff:<id>")
    asked_at = models.DateTimeField()
    words = models.TextField(default="", help_text="why it was refused, or what failed")
    counts = models.JSONField(default=dict, help_text="what was forgotten, in numbers")
    holds = ArrayField(models.BigIntegerField(), default=list, help_text="the holds that refused it")
    erased_at = models.DateTimeField(null=True)
    hashes_gone_at = models.DateTimeField(null=True, help_text="when no keyed hash of its records was left")
    backups_until = models.DateTimeField(null=True, help_text="when the last backup that may hold the user expires")

    class Meta:
        default_permissions = ("view", "add")
        ordering = ["-asked_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["subject"], name="erasure_open_once", condition=Q(state__in=["asked", "erased", "complete"])
            ),
        ]

    def __str__(self) -> str:
        return self.subject
