"""Manifests of exports, `muniment/export/v1`: signing one, and verifying one with the file that it is of, offline.

The signature is by an export key of the platform; the checkpoint in it is the log's own word on how many records there
were. What is believed of both comes from the caller.
"""

import errno
import os
import stat
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Meta, Struct, field

from muniment import batches, checkpoints, notes, statements
from muniment.bundle import time_of
from muniment.checkpoints import Checkpoint, CheckpointError, CheckpointUntrusted
from muniment.export_contents import Reader, Seen, Unreadable, reader_of
from muniment.findings import counted
from muniment.keys import Trust, thumbprint
from muniment.report import Report
from muniment.verify import verify_file

FORMAT = "muniment/export/v1"
SUFFIX = ".manifest.json"
MAX_BYTES = 1 << 20
MOST_NAMED = 3  # months that are named one by one
NONE = "none"
"""How records without a decision are counted."""

_DOMAIN = b"muniment/export/v1\0"
_CHUNK = 1 << 20

Count = Annotated[int, Meta(ge=0, lt=2**53)]
Text = Annotated[str, Meta(max_length=4096)]
Month = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}$")]


class ManifestError(ValueError):
    """Not a manifest. Never repeats the input."""


class Named(Struct):
    """The export as it was defined: its number and what its owner called it."""

    id: Count
    name: Text


class Range(Struct):
    """Which records: `at` in [since, until), ISO 8601; indices of the first and the last record of that time that the
    log had, None where it had none."""

    since: Text
    until: Text
    first: Count | None = None
    last: Count | None = None


class Filed(Struct):
    """The file: its name, beside the manifest, its length and the SHA-256 of its bytes in hexadecimal."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$")]
    bytes: Count
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Sealed(Struct):
    """The log: its name, the index of its first record, and a signed checkpoint (C2SP tlog-checkpoint) that has the
    last record of the range."""

    origin: Text
    start: Count
    checkpoint: Annotated[str, Meta(max_length=notes.MAX_BYTES)]


class Manifest(Struct):
    """What a manifest says. `query` is the search as a query string; `counts` are records by decision, those without
    one under `none`; `deleted` are the months of whose records retention had deleted some; `tenants` those whose
    records alone its owner may see, None where that is every one."""

    format: Text
    type: Text
    export: Named
    slot: Text
    query: Text
    columns: Annotated[list[Text], Meta(max_length=100)]
    personal: bool
    range: Range
    records: Count
    counts: dict[str, Count]
    file: Filed
    made_at: Text
    key_id: Text
    signature: Text
    deleted: Annotated[list[Month], Meta(max_length=12_000)] = []
    log: Sealed | None = None
    tenants: Annotated[list[Text], Meta(max_length=1000)] | None = None


class Facts(Struct):
    """What was looked at. `read`: the file was not only hashed but read; `bundle`: and proves itself."""

    export: str = ""
    file: str = ""
    records: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    since: str = ""
    until: str = ""
    first: int | None = None
    last: int | None = None
    query: str = ""
    tenants: list[str] | None = None
    deleted: list[str] = field(default_factory=list)
    key: str = ""
    sealed: int = 0
    origin: str = ""
    read: bool = False
    statements: int = 0
    bundle: bool = False
    pack: bool = False


def message(manifest: Mapping[str, object]) -> bytes:
    """What is signed: domain || RFC 8785 JSON of all members but `signature`. The domain keeps it from being taken for
    another kind of signature by the same key. Raises statements.StatementError for what no statement may hold."""
    signed = {name: value for name, value in manifest.items() if name != "signature"}
    statements.check(signed, "manifest")
    return _DOMAIN + statements.dump(signed)


def sign(manifest: Mapping[str, object], private: Ed25519PrivateKey) -> dict[str, object]:
    """The manifest with `key_id` and `signature` (RFC 8032, Ed25519, base64) by an export key."""
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    named = {**manifest, "key_id": thumbprint(public)}
    return {**named, "signature": b64encode(private.sign(message(named))).decode("ascii")}


def signed_by(manifest: Mapping[str, object], trust: Trust) -> str | None:
    """The id of the trusted export key that signed this manifest; None where its key is not trusted. Raises
    ManifestError where the key is trusted and the signature does not hold."""
    key_id, signature = manifest.get("key_id"), manifest.get("signature")
    public = trust.exports.get(key_id) if type(key_id) is str else None
    if public is None:
        return None
    try:
        holds = batches.verify(public, message(manifest), notes.from_base64(str(signature)))
    except ValueError:
        holds = False
    if not holds:
        raise ManifestError("the manifest does not bear its key's signature")
    return str(key_id)


def parse(data: bytes) -> tuple[Manifest, dict[str, Any]]:
    """A manifest and its members as they are signed. Raises ManifestError."""
    if len(data) > MAX_BYTES:
        raise ManifestError(f"the manifest is longer than {MAX_BYTES} bytes")
    try:
        members = statements.load(data)
        statements.check(members, "manifest")
        found = msgspec.convert(members, Manifest)
        time_of(found.range.since), time_of(found.range.until)
    except (ValueError, msgspec.ValidationError):
        raise ManifestError("this is not a manifest of an export") from None
    if found.format != FORMAT or type(members) is not dict:
        raise ManifestError("this is not a manifest of an export, or one of a later version")
    return found, members


def verify(path: Path, trust: Trust | None = None) -> tuple[Report, Facts]:
    """Verify a manifest and the file beside it, against the keys in `trust` (None: none are known, which is a finding).
    Raises OSError where the manifest cannot be read; never for what is in it or in the file."""
    report, facts = Report(), Facts()
    with _opened(path) as file:
        data = file.read(MAX_BYTES + 1)
    try:
        manifest, members = parse(data)
    except ManifestError as error:
        report.find("export-malformed", f"{error}")
        return report, facts
    _tell(facts, manifest)
    trusted = trust or Trust()
    if trust is None:
        report.find("keys-untrusted", "no key that you trust was given, so nothing is proved yet (--trust)")
    try:
        facts.key = signed_by(members, trusted) or ""
    except ManifestError as error:
        report.find("export-unsigned", str(error))
    else:
        if not facts.key and trust is not None:
            report.find("export-untrusted", "the manifest is signed by no export key that you trust")
    _check_log(manifest, trusted, trust is not None, report, facts)
    if path.name != manifest.file.name + SUFFIX:
        report.find("export-differs", "the manifest is of another file than the one that it lies beside")
    _check_file(path.parent / manifest.file.name, manifest, trust, report, facts)
    return report, facts


def _tell(facts: Facts, manifest: Manifest) -> None:
    asked = manifest.range
    facts.export, facts.file, facts.query = manifest.export.name, manifest.file.name, manifest.query
    facts.records, facts.counts, facts.deleted = manifest.records, manifest.counts, manifest.deleted
    facts.since, facts.until, facts.first, facts.last = asked.since, asked.until, asked.first, asked.last
    facts.tenants = manifest.tenants


def _check_log(manifest: Manifest, trust: Trust, given: bool, report: Report, facts: Facts) -> None:
    """The checkpoint: signed by a trusted key of its log, and with all of the range in it."""
    asked, log = manifest.range, manifest.log
    if log is None:
        if asked.last is not None:
            report.find("export-differs", "the manifest tells of records, and has no checkpoint that covers them")
        return
    checkpoint: Checkpoint | None
    try:
        checkpoint = checkpoints.read(log.checkpoint, trust.log_keys(log.origin))
    except CheckpointUntrusted:
        if given:
            report.find("checkpoint-untrusted", "the checkpoint is signed by no log key that you trust")
        checkpoint = _believed(log.checkpoint)
    except CheckpointError as error:
        report.find("checkpoint-unsigned", str(error))
        return
    if checkpoint is None or checkpoint.origin != log.origin:
        report.find("export-differs", "the checkpoint is not of the log that the manifest names")
        return
    facts.sealed, facts.origin = checkpoint.size, checkpoint.origin
    if asked.last is not None and asked.last >= log.start + checkpoint.size:
        report.find("export-differs", "the checkpoint does not cover the last record of the range")
    if (asked.first is None) != (asked.last is None) or (asked.first or 0) > (asked.last or 0):
        report.find("export-differs", "the manifest's first and last record are no range")


def _believed(note: str) -> Checkpoint | None:
    """What the checkpoint says, where no key is known to check it with."""
    try:
        return Checkpoint.parse(notes.Note.parse(note).text)
    except ValueError:
        return None


def _check_file(path: Path, manifest: Manifest, trust: Trust | None, report: Report, facts: Facts) -> None:
    """Length, hash, and what the file itself says."""
    try:
        with _opened(path) as file:
            length, digest = _hash(file, manifest.file.bytes)
            if length != manifest.file.bytes or digest != manifest.file.sha256:
                more = " or more" if length > manifest.file.bytes else ""  # it was not read to its end
                words = f"{path.name} is not the file that was exported: it has {counted(length, 'byte')}{more}"
                report.find("export-changed", f"{words}, and the manifest is of {manifest.file.bytes:,}, or others")
                return
            file.seek(0)
            _check_content(file, manifest, trust, report, facts)
    except OSError as error:
        report.find("export-missing", f"{path.name} cannot be read beside its manifest: {error.strerror}")


def _opened(path: Path) -> IO[bytes]:
    """A plain file. Raises OSError for anything else that may lie beside a manifest, or be linked to: a pipe may never
    begin, a device never end."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is not a file")
    return os.fdopen(number, "rb")


def _hash(file: IO[bytes], most: int) -> tuple[int, str]:
    """Length and SHA-256; of what is longer than `most`, not all is read."""
    found, length = sha256(), 0
    while length <= most and (chunk := file.read(_CHUNK)):
        found.update(chunk)
        length += len(chunk)
    return length, found.hexdigest()


def _check_content(file: IO[bytes], manifest: Manifest, trust: Trust | None, report: Report, facts: Facts) -> None:
    """What is in the file, as far as its format can be read here."""
    if manifest.type == "bundle":
        _check_bundle(file, manifest, trust, report)
        facts.bundle = True
    elif manifest.type == "evidence":
        from muniment import packs  # which needs this module

        _take_over(packs.verify(file, trust)[0], report)
        facts.pack = True
    elif (read := reader_of(manifest.type)) and (manifest.type != "parquet" or facts.key):
        _check_records(read, file, manifest, report, facts)


def _take_over(found: Report, report: Report) -> None:
    """Its findings; that no key was given is said already."""
    for one in found.findings:
        if one.code != "keys-untrusted":
            report.add(one)


def _check_bundle(file: IO[bytes], manifest: Manifest, trust: Trust | None, report: Report) -> None:
    found = verify_file(file, trust)
    _take_over(found, report)
    counts = (found.facts.matching, found.facts.allowed, found.facts.denied)
    if counts != (manifest.records, manifest.counts.get("allow", 0), manifest.counts.get("deny", 0)):
        report.find("export-differs", "the records in the bundle are not as many as the manifest counts")


def _check_records(read: Reader, file: IO[bytes], manifest: Manifest, report: Report, facts: Facts) -> None:
    asked = manifest.range
    seen = Seen(time_of(asked.since), time_of(asked.until), asked.first, asked.last, tuple(manifest.columns))
    try:
        read(file, seen)
    except Unreadable as error:
        report.find("export-differs", str(error))
        return
    facts.read, facts.statements = True, seen.statements
    for words, index in seen.faults:
        report.find("export-differs", words, index)
    if seen.records != manifest.records or sum(manifest.counts.values()) != manifest.records:
        words = f"the file has {counted(seen.records, 'record')}, the manifest tells of {manifest.records:,}"
        report.find("export-differs", words)
    elif seen.decided and {name: n for name, n in manifest.counts.items() if n} != seen.counts:
        report.find("export-differs", "the decisions in the file are not as many as the manifest counts")


def told(report: Report, facts: Facts) -> dict[str, Any]:
    """The report for machines."""
    return {
        "ok": report.ok,
        "findings": [{"code": one.code, "message": one.message, "index": one.index} for one in report.findings],
        "count": report.count,
        "export": msgspec.to_builtins(facts),
    }


def words(report: Report, facts: Facts) -> Iterator[str]:
    """The report for people."""
    yield from (one.line for one in report.findings)
    if report.count > len(report.findings):
        yield f"and {report.count - len(report.findings):,} more findings"
    if report.count and {one.code for one in report.findings} != {"keys-untrusted"}:
        return
    yield "With these keys all else would hold:" if report.count else "Everything holds."
    counts = ", ".join(f"{number:,} {name}" for name, number in sorted(facts.counts.items()) if number)
    yield f"{facts.file}: {counted(facts.records, 'record')}{f' ({counts})' if counts else ''}."
    yield f"Of the export {facts.export!a}, from {facts.since} to before {facts.until}."
    if facts.last is None:
        yield "The log had no record in that time."
    else:
        yield f"The log had records {facts.first:,} to {facts.last:,} in that time; the search was {facts.query!a}."
    if facts.tenants is not None:
        yield f"Whoever made it sees the records of these tenants alone: {', '.join(map(ascii, facts.tenants))}."
    if facts.deleted:
        yield f"Before it was made, records of {_months(facts.deleted)} had been deleted by rule."
    if facts.origin:
        yield f"Sealed: {facts.sealed:,} records of {facts.origin}."
    if facts.key:
        yield f"Signed by the export key {facts.key}."
    yield _read(facts)


def _months(found: Sequence[str]) -> str:
    return ", ".join(found) if len(found) <= MOST_NAMED else f"{len(found):,} months from {found[0]} to {found[-1]}"


def _read(facts: Facts) -> str:
    if facts.bundle:
        return "The file is a bundle, which proves itself: it was verified, too."
    if facts.pack:
        return "The file is an evidence pack, which is signed in itself: each file in it was verified, too."
    if not facts.read:
        return "The file is the one that was signed; what is in it was not read."
    stated = f", {counted(facts.statements, 'statement')} in it compared with the columns" if facts.statements else ""
    return f"The file was read to its end, and counted{stated}."
