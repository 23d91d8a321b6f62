"""The command `muniment`: what an auditor, or the owner of a second machine, runs."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from muniment import __version__
from muniment.bundle import text_of, time_of
from muniment.checkpoints import CheckpointError
from muniment.findings import counted
from muniment.keys import MAX_BYTES, Trust, TrustError
from muniment.report import Facts, Report
from muniment.verify import told, verify_file
from muniment.verify_heads import Held

MAX_CHECKPOINT = 1 << 17


class UsageError(Exception):
    """What was given cannot be used. One line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand. 0: all holds; 1: there are findings; 2: what was given cannot be used."""
    words = sys.argv[1:] if arguments is None else arguments
    given = _parser(words).parse_args(words)
    if given.command == "witness":
        from muniment import witness

        return witness.run(given)
    try:
        return {"receipts": _receipts, "spool": _spool, "verify": _verify}[given.command](given)
    except UsageError as error:
        sys.stderr.write(f"muniment: {_plain(str(error))}\n")
        return 2


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="muniment", description="Verify what Muniment recorded, offline.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="verify a bundle, an evidence pack, or an export by its manifest")
    verify.add_argument(
        "bundle", type=Path, metavar="FILE", help="a bundle, a pack, or FILE.manifest.json beside its file"
    )
    verify.add_argument("--trust", type=Path, metavar="FILE", help="keys: a saved /v1/keys, or one vkey a line")
    verify.add_argument(
        "--checkpoint", type=Path, action="append", default=[], metavar="FILE", help="one that you keep (repeatable)"
    )
    verify.add_argument("--from", dest="since", metavar="TIME", help="the bundle must show all records from here on")
    verify.add_argument("--to", dest="until", metavar="TIME", help="to before here (ISO 8601)")
    verify.add_argument("--json", action="store_true", help="for machines")
    receipts = commands.add_parser("receipts", help="verify the receipts that a backend kept")
    receipts.add_argument("folder", type=Path, metavar="FOLDER")
    receipts.add_argument("--trust", type=Path, required=True, metavar="FILE", help="as for verify")
    receipts.add_argument("--bundle", type=Path, metavar="BUNDLE", help="the log of that time, to compare them with")
    receipts.add_argument("--json", action="store_true", help="for machines")
    spool = commands.add_parser("spool", help="list the calls that wait to be reported")
    spool.add_argument("folder", type=Path, metavar="FOLDER")
    witness = commands.add_parser("witness", help="cosign checkpoints of a log, on a machine of its own")
    if "witness" in words[:1]:  # only who runs it needs its modules
        from muniment.witness import add_arguments

        add_arguments(witness)
    return parser


def _verify(given: argparse.Namespace) -> int:
    trust = _trust(given.trust) if given.trust else None
    # What is asked of a pack or bundle itself is answered by it, also where the manifest of its export lies beside.
    asked = given.checkpoint or given.since or given.until
    manifest = _manifest(given.bundle)
    if manifest and not (asked and given.bundle.suffix == ".zip"):
        return _export(given, manifest, trust)
    if _is_pack(given.bundle):
        return _pack(given, trust)
    held = [_held(path) for path in given.checkpoint]
    since, until = _period(given)
    try:
        with given.bundle.open("rb") as file:
            report = verify_file(file, trust, held, since, until)
    except OSError as error:
        raise UsageError(f"{given.bundle.name} cannot be read: {error.strerror}") from None
    _print([json.dumps(told(report), indent=1)] if given.json else map(_plain, _words(report)))
    return 0 if report.ok else 1


def _manifest(path: Path) -> Path | None:
    """The manifest of an export, where one is given, or the file that it lies beside; else None."""
    from muniment.exported import SUFFIX  # only who has an export needs it

    if path.name.endswith(SUFFIX):
        return path
    beside = path.with_name(path.name + SUFFIX)
    return beside if beside.exists() else None


def _export(given: argparse.Namespace, manifest: Path, trust: Trust | None) -> int:
    from muniment import exported

    if given.checkpoint or given.since or given.until:
        raise UsageError("--checkpoint, --from and --to are for bundles; an export is verified as it was made")
    try:
        report, facts = exported.verify(manifest, trust)
    except OSError as error:
        raise UsageError(f"{manifest.name} cannot be read: {error.strerror}") from None
    lines = [json.dumps(exported.told(report, facts), indent=1)] if given.json else exported.words(report, facts)
    _print(lines if given.json else map(_plain, lines))
    return 0 if report.ok else 1


def _is_pack(path: Path) -> bool:
    """Whether the file is an evidence pack; one that cannot be read is not, and is said so by who reads it next."""
    from muniment import packs  # only who has one needs it

    try:
        with path.open("rb") as file:
            return packs.is_pack(file)
    except OSError:
        return False


def _pack(given: argparse.Namespace, trust: Trust | None) -> int:
    from muniment import packs

    if given.checkpoint:
        raise UsageError("--checkpoint is for bundles: an evidence pack has the leaves of records, and no paths")
    since, until = _period(given)
    try:
        with given.bundle.open("rb") as file:
            report, facts = packs.verify(file, trust, since, until)
    except OSError as error:
        raise UsageError(f"{given.bundle.name} cannot be read: {error.strerror}") from None
    lines = [json.dumps(packs.told(report, facts), indent=1)] if given.json else packs.words(report, facts)
    _print(lines if given.json else map(_plain, lines))
    return 0 if report.ok else 1


def _period(given: argparse.Namespace) -> tuple[int | None, int | None]:
    since, until = _time("--from", given.since), _time("--to", given.until)
    if since is not None and until is not None and since >= until:
        raise UsageError("--from must be before --to")
    return since, until


def _spool(given: argparse.Namespace) -> int:
    from muniment import spool  # only a backend has one

    try:
        found = spool.look(given.folder)
    except OSError as error:
        raise UsageError(f"{given.folder.name} cannot be read: {error.strerror}") from None
    _print([words for words, _ in found] or ["Nothing waits."])
    return 0 if all(holds for _, holds in found) else 1


def _receipts(given: argparse.Namespace) -> int:
    from muniment import verify_receipts as receipts  # only who keeps receipts needs it
    from muniment.receipts import writer_keys

    text = _read(given.trust, MAX_BYTES)
    try:
        trust, keys = Trust.parse(text), writer_keys(text)
    except TrustError as error:
        raise UsageError(f"{given.trust.name}: {error}") from None
    try:
        with given.bundle.open("rb") if given.bundle else nullcontext() as bundle:
            report, facts = receipts.verify_receipts(given.folder, trust, keys, bundle)
    except OSError as error:
        name = Path(error.filename or given.folder).name
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None
    if report.ok and not facts.receipts:
        raise UsageError(f"{given.folder.name} holds no receipts")
    if given.json:
        _print([json.dumps(receipts.told(report, facts), indent=1)])
    else:
        _print(map(_plain, receipts.words(report, facts)))
    return 0 if report.ok else 1


def _print(lines: Iterable[str]) -> None:
    try:
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it has seen enough; the interpreter must not try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain(line: str) -> str:
    """ASCII alone: what a bundle says reaches a terminal, and every terminal can show it."""
    return "".join(one if one.isprintable() else "?" for one in line).encode("ascii", "backslashreplace").decode()


def _read(path: Path, most: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        return data.decode()
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path.name} is not text") from None


def _trust(path: Path) -> Trust:
    try:
        return Trust.parse(_read(path, MAX_BYTES))
    except TrustError as error:
        raise UsageError(f"{path.name}: {error}") from None


def _held(path: Path) -> Held:
    try:
        return Held.parse(path.name, _read(path, MAX_CHECKPOINT))
    except CheckpointError as error:
        raise UsageError(f"{path.name}: {error}") from None


def _time(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else time_of(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _words(report: Report) -> Iterator[str]:
    """The report for people."""
    if not report.ok:
        yield from (one.line for one in report.findings)
        if report.count > len(report.findings):
            yield f"and {report.count - len(report.findings):,} more findings"
        yield from (f"key in the bundle, which proves nothing: {key}" for key in report.facts.fingerprints)
        if {one.code for one in report.findings} == {"keys-untrusted"}:
            yield f"With these keys all else would hold, from {report.facts.since} to before {report.facts.until}."
            yield from _facts(report.facts)
        return
    yield f"Everything holds, from {report.facts.since} to before {report.facts.until}."
    yield from _facts(report.facts)


def _facts(facts: Facts) -> Iterator[str]:
    """What was looked at."""
    yield from _range(facts)
    yield from _open(facts)
    for log in facts.logs:
        by = f"signed by {', '.join(log.keys)}" if log.keys else "closed; the next log vouches for it"
        yield f"Sealed: {log.size:,} records of {log.origin}, root {log.root}, {by}."
    for one in facts.cosigned:
        yield f"Cosigned by {one.witness}: {one.size:,} records of {one.origin}, at {_clock(one.at)}."
    if not facts.cosigned:
        yield "No witness that you trust cosigned it."
    yield f"Written by: {', '.join(facts.writers) or 'nobody'}."
    if facts.compared:
        yield f"It leads on from {counted(facts.compared, 'checkpoint')} that you hold."


def _range(facts: Facts) -> Iterator[str]:
    yield f"Records {facts.first:,} to {facts.last:,}: {facts.opened:,} open, {facts.closed:,} closed."
    if facts.deleted:
        yield f"{counted(facts.deleted, 'record')} deleted by rule; retention records account for it."
    if facts.until_end:
        yield (
            "The range ends with the log as it was sealed: whether more was written before the end of the time that "
            "was asked for, only a later checkpoint shows (--checkpoint)."
        )


def _open(facts: Facts) -> Iterator[str]:
    about = [f"of user {facts.subject!a}"] if facts.subject else []
    about += [f"by client {facts.client!a}"] if facts.client else []
    words = f"In that time{''.join(f', {one}' for one in about)}: {counted(facts.matching, 'open record')}"
    yield f"{words}, {facts.allowed:,} allowed, {facts.denied:,} denied."
    if about:
        yield "That no closed record is about them too is the platform's word, not proven: see README.txt."
    if facts.disclosed or facts.unreadable:
        yield f"Protected details of {facts.disclosed:,} records; of {facts.unreadable:,} they can no longer be read."


def _clock(at: int) -> str:
    return text_of(at * 1_000_000)


if __name__ == "__main__":
    raise SystemExit(main())
