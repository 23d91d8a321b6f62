"""The log, and what is made from it.

`Head` is the one row that everything recorded passes through; `Batch` and `Record` are the log; `Outbox` is where every
process other than a web writer, and every change of policy, leaves what must be recorded. `Log`, `Tile` and
`Checkpoint` are the trees that the sealer builds over the records; `Anchoring` is what of them is held elsewhere.
"""

from datetime import UTC, datetime

from django.contrib.postgres.functions import RandomUUID
from django.db import models
from django.db.models import Q

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


def plain_time(field: str, name: str) -> models.CheckConstraint:
    """A time that every process can hold: psql would also take `infinity`, the year 10000 and BC, on which the
    policy could not be loaded."""
    return models.CheckConstraint(
        condition=Q(**{field: None}) | Q(**{f"{field}__range": (EARLIEST, LATEST)}), name=name
    )


class Head(models.Model):
    """The log's head and the policy's version, in one row, so that a decision from an older policy cannot be
    recorded (DESIGN.md section 5, Fresh by construction)."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    policy = models.BigIntegerField(default=0, help_text="policy version, raised by every change at its commit")
    next = models.BigIntegerField(default=0, help_text="index of the next record")
    at = models.DateTimeField(help_text="the log's monotone clock: the time of the newest record")
    batch = models.BinaryField(help_text="digest of the newest write batch, 32 bytes")
    drained = models.BigIntegerField(default=0, help_text="newest policy version that is in the log")

    class Meta:
        verbose_name = "log head"
        constraints = [
            models.CheckConstraint(condition=Q(id=1), name="audit_head_single"),
            models.CheckConstraint(
                condition=Q(drained__lte=models.F("policy")), name="audit_head_drained_within_policy"
            ),
        ]

    def __str__(self) -> str:
        return f"policy {self.policy}, {self.next} records"


class Batch(models.Model):
    """A write batch: the records of one commit, signed together and chained to the batch before
    (DESIGN.md section 6, Writing)."""

    first = models.BigIntegerField(primary_key=True, help_text="index of its first record")
    size = models.IntegerField()
    previous = models.BinaryField(help_text="digest of the batch before, 32 bytes")
    root = models.BinaryField(help_text="Merkle root over its leaves, 32 bytes")
    digest = models.BinaryField(help_text="what the next batch names as previous, 32 bytes")
    signature = models.BinaryField(help_text="Ed25519 by the writer key, 64 bytes")
    key_id = models.CharField(max_length=64)
    at = models.DateTimeField()

    class Meta:
        verbose_name = "write batch"
        verbose_name_plural = "write batches"
        constraints = [models.CheckConstraint(condition=Q(size__gt=0), name="audit_batch_size")]

    def __str__(self) -> str:
        return f"{self.first}+{self.size}"


class Record(models.Model):
    """One immutable entry of the log. The table is made by SQL (partitioned by month of `at`, which is unique and
    rises with `index`); columns repeat members of the statement so that they can be searched."""

    id = models.UUIDField(primary_key=True, help_text="UUIDv7 made from `at` (RFC 9562)")
    index = models.BigIntegerField(unique=True)
    at = models.DateTimeField(unique=True)
    type = models.CharField(max_length=20)
    decision = models.CharField(max_length=5, null=True)
    reason = models.CharField(max_length=40, null=True)
    flagged = models.BooleanField(default=False)
    backend = models.CharField(max_length=64, null=True)
    client = models.CharField(max_length=64, null=True)
    subject = models.CharField(max_length=40, null=True)
    tenant = models.CharField(max_length=255, null=True)
    tool = models.CharField(max_length=128, null=True)
    mode = models.CharField(max_length=11, null=True, help_text="agent mode of a call")
    scopes = models.TextField(null=True, help_text="scopes that the call needed, with spaces between")
    parent = models.UUIDField(null=True)
    request_key = models.BinaryField(null=True, help_text="keyed hash of the request id")
    trace_key = models.BinaryField(null=True, help_text="keyed hash of the trace id")
    session_key = models.BinaryField(null=True, help_text="keyed hash of the session id")
    resource_key = models.BinaryField(null=True, help_text="keyed hash of the resource's type and id")
    holder = models.CharField(max_length=120, null=True, help_text="whose data key protects the disclosures")
    statement = models.BinaryField(help_text="the exact bytes that were hashed (RFC 8785)")
    leaf = models.BinaryField(help_text="SHA-256(0x00 || statement), RFC 9162 section 2.1")
    disclosures = models.BinaryField(null=True, help_text="nonce and AES-256-GCM of the disclosures")

    class Meta:
        managed = False
        default_permissions = ("view",)
        permissions = [("export_record", "Can take records out as files")]

    def __str__(self) -> str:
        return str(self.id)


class Outbox(models.Model):
    """What must be recorded but was not made by a web writer: policy changes (written by trigger, so that psql
    counts too) and what staff and background processes do. Drained into the log exactly once."""

    kind = models.CharField(max_length=20, help_text="the type of the record it becomes")
    version = models.BigIntegerField(null=True, help_text="policy version, given at commit")
    xact = models.TextField(help_text="transaction id, groups the changes of one version")
    at = models.DateTimeField()
    table_name = models.CharField(max_length=63, null=True)
    operation = models.CharField(max_length=6, null=True)
    row_key = models.TextField(null=True)
    old = models.JSONField(null=True, help_text="allow-listed columns before")
    new = models.JSONField(null=True, help_text="allow-listed columns after")
    members = models.JSONField(null=True, help_text="members of the statement, for kinds other than policy")
    private = models.JSONField(null=True, help_text="what becomes protected disclosures; cleared by the drain")
    actor = models.CharField(max_length=120, help_text="staff:<id>, backend:<slug>, database:<role>")
    role = models.CharField(
        max_length=63, default="", help_text="the database role that wrote it, whoever it claims to be"
    )
    record_index = models.BigIntegerField(null=True, help_text="where the log has it, once drained")

    class Meta:
        verbose_name = "outbox entry"
        verbose_name_plural = "outbox entries"
        indexes = [
            # query: audit.outbox.pending
            models.Index(fields=["id"], name="outbox_pending", condition=Q(record_index=None)),
            # query: the trigger that numbers the changes of one transaction
            models.Index(fields=["xact"], name="outbox_unnumbered", condition=Q(version=None)),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.version or ''} {self.table_name or ''}".strip()


class PublishedKey(models.Model):
    """A public key with which others check what Muniment signed; kept for ever, so that old evidence verifies."""

    USES = ["writer", "log", "export", "assertion"]

    key_id = models.CharField(max_length=64, primary_key=True, help_text="RFC 7638 thumbprint of the public key")
    use = models.CharField(max_length=10, choices=[(u, u) for u in USES])
    public = models.BinaryField(help_text="Ed25519 public key, 32 bytes")
    not_before = models.DateTimeField(auto_now_add=True)
    not_after = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "published key"

    def __str__(self) -> str:
        return f"{self.use} {self.key_id}"


class Sighting(models.Model):
    """The inbox: a client or tool that was named by a call but is not known, with counts. Raises no version."""

    kind = models.CharField(max_length=6, choices=[("client", "client"), ("tool", "tool")])
    source = models.CharField(max_length=255, help_text="the issuer of the client id, or the backend's slug")
    name = models.CharField(max_length=255, help_text="the OAuth client id, or the tool's name")
    count = models.BigIntegerField(default=0)
    first_seen = models.DateTimeField(auto_now_add=True)
    last_seen = models.DateTimeField()
    ignored_at = models.DateTimeField(null=True, blank=True, help_text="staff decided to leave it refused")

    class Meta:
        verbose_name = "inbox entry"
        verbose_name_plural = "inbox"
        constraints = [models.UniqueConstraint(fields=["kind", "source", "name"], name="sighting_once")]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Log(models.Model):
    """One Merkle tree over records: its leaf k is the record at index `start` + k. There is one, unless a real loss
    closed it and two people opened the next (DESIGN.md section 6, Sealing)."""

    number = models.SmallIntegerField(primary_key=True)
    origin = models.CharField(max_length=255, unique=True, help_text="C2SP tlog-checkpoint: the log's name for ever")
    start = models.BigIntegerField(help_text="index of its first record")
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.origin


class Tile(models.Model):
    """Up to 256 hashes of one level of a log's tree (C2SP tlog-tiles). A partial tile grows until it is full, so that
    every narrower one is a prefix of it. Kept for ever: retention deletes records, never tiles."""

    log = models.SmallIntegerField()
    level = models.SmallIntegerField()
    index = models.BigIntegerField()
    hashes = models.BinaryField(help_text="1 to 256 hashes of 32 bytes")

    class Meta:
        # query: audit.logtree, by all three
        constraints = [models.UniqueConstraint(fields=["log", "level", "index"], name="tile_once")]

    def __str__(self) -> str:
        return f"{self.log}/{self.level}/{self.index}"


class Checkpoint(models.Model):
    """A signed tree head (C2SP tlog-checkpoint): never two roots for one size."""

    log = models.SmallIntegerField()
    size = models.BigIntegerField(help_text="leaves in the tree")
    root = models.BinaryField(help_text="Merkle root, 32 bytes")
    note = models.TextField(help_text="the note as the sealer signed it, without cosignatures")
    key_id = models.CharField(max_length=64)
    at = models.DateTimeField()

    class Meta:
        # query: the newest of a log, the first that covers a record
        constraints = [models.UniqueConstraint(fields=["log", "size"], name="checkpoint_once")]

    def __str__(self) -> str:
        return f"{self.log}, {self.size} records"


class Anchoring(models.Model):
    """A checkpoint that an anchor, outside of the database administrator's reach, has taken."""

    anchor = models.CharField(max_length=255)
    log = models.SmallIntegerField()
    size = models.BigIntegerField()
    at = models.DateTimeField()
    cosignature = models.TextField(default="", help_text="a witness's signature lines (C2SP tlog-cosignature)")

    class Meta:
        constraints = [
            # query: the newest of one anchor
            models.UniqueConstraint(fields=["anchor", "log", "size"], name="anchored_once"),
        ]
        # query: where a record is anchored
        indexes = [models.Index(fields=["log", "size"], name="anchoring_by_size")]

    def __str__(self) -> str:
        return f"{self.anchor}: {self.log}, {self.size} records"


class AnchorState(models.Model):
    """How one configured anchor does: its last attempt, its last success, and the error between them."""

    name = models.CharField(max_length=255, primary_key=True, help_text="kind and place, without credentials")
    kind = models.CharField(max_length=20)
    log = models.SmallIntegerField(null=True)
    size = models.BigIntegerField(null=True, help_text="size of the newest checkpoint that it took")
    reached_at = models.DateTimeField(null=True, help_text="when it took that one")
    tried_at = models.DateTimeField(null=True)
    failures = models.IntegerField(default=0, help_text="in a row")
    error = models.TextField(default="")

    class Meta:
        verbose_name = "anchor"

    def __str__(self) -> str:
        return self.name


class Alert(models.Model):
    """Something that a person must look at: raised once, seen again while it lasts, cleared when it is over."""

    kind = models.CharField(max_length=40)
    about = models.CharField(max_length=255, default="")
    words = models.TextField()
    raised_at = models.DateTimeField()
    seen_at = models.DateTimeField()
    cleared_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            # query: audit.alerts.open_alerts
            models.UniqueConstraint(fields=["kind", "about"], condition=Q(cleared_at=None), name="alert_open_once"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.about}".strip()


class Verification(models.Model):
    """One run of the log's verification: what was looked at, and what was found."""

    kind = models.CharField(max_length=10, help_text="full, since, or sample")
    began_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    records = models.BigIntegerField(default=0)
    size = models.BigIntegerField(default=0, help_text="sealed size that was looked at")
    findings = models.JSONField(default=list, help_text="code, index and message of each, at most 100")
    count = models.IntegerField(default=0, help_text="of findings")

    class Meta:
        indexes = [models.Index(fields=["-began_at"], name="verification_newest")]  # query: the log page

    def __str__(self) -> str:
        return f"{self.kind} {self.began_at:%Y-%m-%d %H:%M}"


class SealerStatus(models.Model):
    """What the active sealer said last, in one row: the admin's and the operators' sign of its life."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    state = models.CharField(max_length=10, help_text="active, halted or closed")
    words = models.TextField(default="")
    host = models.CharField(max_length=255, default="")
    seen_at = models.DateTimeField()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="sealer_status_single")]

    def __str__(self) -> str:
        return self.state


class Rollup(models.Model):
    """How many records of one kind there were in a span of time, for charts (`audit.rollups`). Each cut counts every
    record once, by its own dimensions; a subject is never one. What is absent or not told is the empty string."""

    SPANS = ["5m", "1h", "1d", "1w"]

    span = models.CharField(max_length=2, choices=[(s, s) for s in SPANS])
    cut = models.CharField(max_length=3, default="all", help_text="which dimensions are told apart: audit.rollups.CUTS")
    at = models.DateTimeField(help_text="start of the span")
    key = models.BigIntegerField(help_text="hash of the dimensions, so that the row is found at once")
    type = models.CharField(max_length=20)
    decision = models.CharField(max_length=5)
    reason = models.CharField(max_length=40)
    flagged = models.BooleanField()
    backend = models.CharField(max_length=64)
    client = models.CharField(max_length=64)
    tenant = models.CharField(max_length=255)
    tool = models.CharField(max_length=128)
    mode = models.CharField(max_length=11)
    count = models.BigIntegerField()

    class Meta:
        default_permissions = ()
        # query: the upsert of audit.rollups; what became too old
        constraints = [models.UniqueConstraint(fields=["span", "at", "key"], name="rollup_once")]
        indexes = [
            # query: audit.rollups, a chart over the dimensions of one cut; of one client, tool or tenant
            models.Index(fields=["cut", "span", "at"], name="rollup_cut"),
            models.Index(
                fields=["client", "cut", "span", "at"], name="rollup_client", condition=Q(cut__in=["ct", "cr"])
            ),
            models.Index(
                fields=["tool", "cut", "span", "at"], name="rollup_tool", condition=Q(cut__in=["t", "ct", "tr"])
            ),
            models.Index(fields=["tenant", "cut", "span", "at"], name="rollup_tenant", condition=~Q(tenant="")),
        ]

    def __str__(self) -> str:
        return f"{self.span} {self.at:%Y-%m-%d %H:%M}: {self.count}"


class RollupState(models.Model):
    """How far the records are counted, in one row that the counting transaction locks."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    next = models.BigIntegerField(default=0, help_text="index of the first record that is not counted")
    at = models.DateTimeField(null=True, help_text="time of the newest record that is counted")
    salt = models.UUIDField(db_default=RandomUUID(), help_text="of the rollups' keys")

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=Q(id=1), name="rollup_state_single")]

    def __str__(self) -> str:
        return f"{self.next} records counted"


class SavedSearch(models.Model):
    """A search that somebody keeps, by its URL: names and uids, never an e-mail address."""

    owner = models.CharField(max_length=120, help_text="staff:<id>")
    name = models.CharField(max_length=120)
    query = models.CharField(max_length=2000, help_text="the query string of the search")
    shared = models.BooleanField(default=False, help_text="others on the staff see it too")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "saved search"
        verbose_name_plural = "saved searches"
        default_permissions = ()
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["owner", "name"], name="saved_search_once")]

    def __str__(self) -> str:
        return self.name
