"""Which keys the log itself leads to, for whoever was told of none: the one that its first write batch and the one that
its first checkpoint are signed with, and what those introduced. That a key is published makes it known, not trusted."""

from pathlib import Path

from django.conf import settings

from audit.models import Batch, Checkpoint, Log, PublishedKey, Record
from muniment import checkpoints, statements
from muniment.checkpoints import CheckpointError
from muniment.keys import Trust, TrustError, thumbprint
from muniment.notes import ED25519, Key, NoteError


def given() -> Trust | None:
    """The keys of MUNIMENT_TRUST_FILE; None where it is not set. Raises TrustError where it cannot be used."""
    if not settings.MUNIMENT_TRUST:
        return None
    try:
        return Trust.parse(Path(settings.MUNIMENT_TRUST).read_text())
    except (OSError, UnicodeDecodeError):
        raise TrustError("MUNIMENT_TRUST_FILE cannot be read") from None


def believed() -> Trust:
    """The keys that are given, else those that the log begins with, and what they introduced; those that were retired
    since, too."""
    trust = given() or Trust(writers=first_writer(), logs=first_log())
    follow(trust)
    return trust


def first_writer() -> dict[str, bytes]:
    """The key of the write batch that the log begins with, by id; empty where there is none."""
    batch = Batch.objects.filter(first=0).first()
    row = PublishedKey.objects.filter(key_id=batch.key_id, use="writer").first() if batch else None
    return {row.key_id: bytes(row.public)} if row and thumbprint(bytes(row.public)) == row.key_id else {}


def first_log() -> dict[str, bytes]:
    """The published key that signed the first checkpoint, by id; empty where none did."""
    log = Log.objects.order_by("number").first()
    first = Checkpoint.objects.filter(log=log.number).order_by("size").first() if log else None
    if log is None or first is None:
        return {}
    for key_id, public in PublishedKey.objects.filter(use="log").values_list("key_id", "public"):
        try:
            checkpoints.read(first.note, [Key(log.origin, ED25519, bytes(public))])
        except (CheckpointError, NoteError):
            continue
        return {key_id: bytes(public)}
    return {}


def follow(trust: Trust, upto: int | None = None) -> None:
    """Extend trust by the introductions on record below an index. Each bears the signature of a key that is trusted by
    then, so that it is good wherever it stands."""
    rows = Record.objects.filter(type="key").order_by("index")
    if upto is not None:
        rows = rows.filter(index__lt=upto)
    for statement in rows.values_list("statement", flat=True).iterator():
        try:
            said = statements.decode(bytes(statement))
        except statements.StatementError:
            continue  # the examiner says so
        trust.learn(said)
