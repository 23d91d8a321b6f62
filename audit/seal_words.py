"""What `seal --explain` says: how far the log is sealed, who seals it, what stopped it and what to do about it."""

from collections.abc import Callable
from datetime import UTC, datetime

import psycopg

from audit.seal_session import ACTIVE
from audit.seal_state import StateBroken, StateDir
from muniment.findings import CODES

TAMPERED = (
    "Somebody with rights on the database changed it, or a disk or a tool damaged it.",
    "Keep the database as it is. Run `manage.py verify_log`, and compare with a backup and with the anchors. Sealing"
    " goes on by itself once the database holds again what was written.",
)
LOST = (
    "An old backup was put back, or a failover promoted a server that lacked the newest records, or somebody cut"
    " them off.",
    "Look for a server or a backup that has the records, and put them back: sealing then goes on by itself. If they are"
    " lost for good, two people close the log and open the next one: `seal --close`, then `seal --open`.",
)
SIGNED = (
    "A copy of the sealer with another state signed, or somebody wrote into the table of checkpoints.",
    "Make sure that only one log key and one state are in use, compare with the anchors, and run `manage.py"
    " verify_log`. A row that no sealer wrote must go before sealing can go on.",
)
REMEDIES = {
    "rollback": LOST,
    "other-history": LOST,
    "batch-missing": LOST,
    "cut-off": LOST,
    "record-missing": LOST,
    "fork": SIGNED,
    "checkpoint-untrusted": SIGNED,
    "root-differs": SIGNED,
    "batch-key-untrusted": (
        "A web process started with a writer key that the log does not introduce, or somebody else signed.",
        "If the key is yours and its records can still come from the old one: announce it with the old key. Where the"
        " old key is lost, `manage.py seal --accept=KEY_ID --yes` on the sealer's machine. If the key is not yours,"
        " keep the database as it is.",
    ),
    "batch-key-retired": (
        "A web process still runs with a writer key that was retired.",
        "Give it the new key. Was it not yours, keep the database as it is: the old key is in other hands.",
    ),
    "log-closed": (
        "The log was closed and the next one opened with another copy of the state.",
        "Use that copy; this one is of the past.",
    ),
    "state-broken": (
        "The files of the sealer's state were changed or damaged.",
        "Put back a copy of the folder, or move it away and start from an anchored checkpoint: `seal --from FILE`.",
    ),
}
MEANINGS = {
    "other-history": "The database holds another history than the one that was sealed.",
    "log-closed": "This log is over.",
    "database-differs": "A table of the log is gone, or holds what no table of it can.",
    "state-broken": "The sealer's own files cannot be believed.",
}


def explain(directory: StateDir, connect: Callable[[], psycopg.Connection]) -> str:
    """Plain words, a few lines. Needs no key; says what it can where the database is away."""
    return "\n".join([*_state(directory), *_database(connect), *_halt(directory)])


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _state(directory: StateDir) -> list[str]:
    try:
        state = directory.read()
    except (StateBroken, OSError) as error:
        return [f"The state in {directory.path} cannot be read: {error}."]
    if state is None:
        return [f"No state in {directory.path}: no sealer has run with this folder."]
    lines = [f"Log {state.log}, {state.origin}: {state.sealed:,} records are sealed, from index {state.start:,} on."]
    if state.sealed == state.size:
        lines.append(f"Root {state.root.hex()}.")
    else:
        lines.append(f"It is being read anew: {state.size:,} records so far.")
    if state.at is not None:
        lines.append(f"The newest of them was recorded at {_time(datetime.fromtimestamp(state.at / 1_000_000, UTC))}.")
    if state.closed:
        lines.append("The log is closed. Nothing is sealed until two people open the next one: seal --open.")
    return lines


def _database(connect: Callable[[], psycopg.Connection]) -> list[str]:
    try:
        with connect() as connection:
            head = connection.execute("SELECT next FROM audit_head").fetchone()
            newest = connection.execute(
                "SELECT log, size, at FROM audit_checkpoint ORDER BY log DESC, size DESC LIMIT 1"
            ).fetchone()
            status = connection.execute("SELECT state, host, seen_at FROM audit_sealerstatus").fetchone()
            holder = connection.execute(
                "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s AND granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                [ACTIVE >> 32, ACTIVE & 0xFFFFFFFF],
            ).fetchone()
    except psycopg.Error as error:
        return [f"The database cannot be asked ({type(error).__name__})."]
    lines = [f"The database has {head[0]:,} records."] if head else []
    if newest:
        lines.append(f"Its newest checkpoint: {newest[1]:,} records of log {newest[0]}, signed at {_time(newest[2])}.")
    else:
        lines.append("It has no checkpoint yet.")
    if holder and status:
        lines.append(f"Active: {status[1]}, {status[0]}, last seen at {_time(status[2])}.")
    else:
        lines.append("No sealer is active." if not holder else "A sealer is active that has said nothing yet.")
    return lines


def _halt(directory: StateDir) -> list[str]:
    found = directory.halted()
    if found is None:
        return ["Nothing stopped it."]
    cause = str(found.get("cause"))
    meaning = MEANINGS.get(cause) or CODES.get(cause, "")
    happened, remedy = REMEDIES.get(cause, TAMPERED)
    at = found.get("at")
    since = f" at {_time(datetime.fromtimestamp(at, UTC))}" if isinstance(at, int) else ""
    return [f"It stopped{since} ({cause}): {found.get('words')}.", meaning, f"Probably: {happened}", f"Do: {remedy}"]
