"""Server processes of our own: under an unprivileged account when we are root, and gone when we are gone.

Linux only: it leans on /proc, pidfds (pidfd_open(2)) and prctl(2).
"""

import contextlib
import ctypes
import os
import pwd
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 28, 38, 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
TOOK_NO_ORDER = 127

Process: TypeAlias = "subprocess.Popen[bytes]"

libc = ctypes.CDLL(None, use_errno=True)


class EmbeddedError(Exception):
    """An embedded server cannot run; the text says which, why, and what would help."""


@dataclass(frozen=True)
class Account:
    """Whom a server runs as. ``capability`` is the one it keeps so that it can reach its own files."""

    uid: int
    gid: int
    capability: int | None = None


def choose_account(entered: Path, programs: Sequence[Path]) -> Account | None:
    """None (stay who we are) unless we are root: then `nobody`, since PostgreSQL refuses to serve as root.

    ``entered`` is the folder that the servers' data are in, ``programs`` what they run. Where one lies under
    a folder that only root may enter (a clone in /root), data moved elsewhere would be lost at the next
    clean-up, and opening the folder is not ours to do: the server then keeps one capability, the least that
    lets it pass such folders (or, the second, run files that are root's alone), and no other.
    """
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    for capability in (None, CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        account = Account(entry.pw_uid, entry.pw_gid, capability)
        if can_reach(account, entered, programs):
            return account
    raise EmbeddedError(
        f"the account 'nobody', under which root runs the servers, cannot reach {entered} or this virtual "
        "environment; move them where others may enter, or run as a plain user, or set DATABASE_URL, "
        "DATABASE_OWNER_URL and REDIS_URL"
    )


def can_reach(account: Account, entered: Path, programs: Sequence[Path]) -> bool:
    """Whether the account may enter the folder and run each program: tried, as that account."""
    script = 'cd "$1" && shift && for program in "$@"; do "$program" --version || exit 1; done'
    try:
        tried = subprocess.run(
            ["/bin/sh", "-c", script, "sh", str(entered), *map(str, programs)],
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=30,
            check=False,
            preexec_fn=preparation(account, signal.SIGKILL),  # only system calls in there
        )
    except subprocess.SubprocessError:  # we lack the capability ourselves
        return False
    return tried.returncode == 0


def launch(
    arguments: list[str],
    *,
    log: Path,
    account: Account | None,
    death_signal: signal.Signals,
    environment: Mapping[str, str],
    stdin: str = "",
    stdout: BinaryIO | None = None,
    cwd: Path = Path("/"),
) -> Process:
    """Start a process in a session of its own; what it prints goes to ``log``, or ``stdout`` and ``log``.

    It gets ``death_signal`` when the calling *thread* ends (prctl(2), PR_SET_PDEATHSIG), so call from a
    thread that lives as long as the process should. EmbeddedError when it cannot be started.
    """
    with open_log(log) as output:
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=stdout or output,
                stderr=output,
                env=environment,
                cwd=cwd,
                umask=0o077,
                start_new_session=True,
                preexec_fn=preparation(account, death_signal),  # only system calls in there
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedError(f"{Path(arguments[0]).name} cannot be started: {error}") from None
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(stdin.encode())
    return process


def preparation(account: Account | None, death_signal: signal.Signals) -> Callable[[], None]:
    """What the child does before it becomes the server. The death signal comes last: setuid clears it."""
    parent = os.getpid()

    def prepare() -> None:
        if account is not None:
            drop_privileges(account)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        prctl(PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:  # it died before the line above took effect
            os._exit(TOOK_NO_ORDER)

    return prepare


def drop_privileges(account: Account) -> None:
    """Become ``account`` for good, with its one capability inheritable and ambient (capabilities(7))."""
    os.setgroups([])
    os.setgid(account.gid)
    if account.capability is not None:
        # Keeps capabilities over setuid and makes access(2), which PostgreSQL asks for its parts, heed them.
        prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setuid(account.uid)
    if account.capability is None:
        return
    bit = 1 << account.capability
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable; low then high
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, account.capability)


def prctl(option: int, *values: int) -> None:
    """prctl(2). OSError when the kernel refuses."""
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *arguments) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def open_log(path: Path, *, most: int = 5_000_000) -> BinaryIO:
    """Open a log for appending (mode 0600); one that has grown large is kept once, as NAME.log.1."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > most:
            path.replace(path.with_name(path.name + ".1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def last_lines(path: Path, count: int = 20) -> str:
    """The end of a log, for a message about why its process died. Empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return ""


def stop(process: Process, signals: Iterable[tuple[signal.Signals, float]]) -> int:
    """Send each signal in turn, waiting its seconds, then SIGKILL. Returns the exit status."""
    for number, seconds in signals:
        if process.poll() is not None:
            break
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    if process.poll() is None:
        process.kill()
    return process.wait()


def exited(process: Process) -> int | None:
    """The exit status, or None while it runs. Does not reap: until then no other group can get its number."""
    if process.returncode is not None:
        return process.returncode
    found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def stop_group(process: Process, seconds: float) -> int:
    """SIGTERM to a leader that ``launch`` started, its time to end, then SIGKILL to all of its group."""
    if process.returncode is not None:
        return process.returncode
    if exited(process) is None:
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while exited(process) is None and time.monotonic() < deadline:
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def stop_leftovers(
    program: str, option: str, directory: Path, account: Account | None, first_signal: signal.Signals
) -> int:
    """Stop what an earlier start left serving ``directory``, and only that. Returns how many there were.

    Ours is a process of our account whose command line is ``program ... option directory``. That, unlike its
    working folder, root may read without CAP_SYS_PTRACE, which containers lack.
    """
    accounts = {os.geteuid()} | ({account.uid} if account else set())
    pair = os.fsencode(f"\0{option}\0{directory}\0")

    def is_ours(proc: str) -> bool:
        line = _command_line(proc)
        name = Path(os.fsdecode(line.partition(b"\0")[0])).name
        return name == program and pair in line and _owner(proc) in accounts

    return stop_matching(is_ours, first_signal)


def stop_matching(is_ours: Callable[[str], bool], first_signal: signal.Signals, *, seconds: float = 15) -> int:
    """Stop each process whose /proc folder satisfies ``is_ours``; EmbeddedError if one cannot be stopped.

    A pidfd is held from before that check: the number cannot pass to another process before the signal.
    """
    found = _open_matching(is_ours)
    try:
        deadline = time.monotonic() + seconds
        for number, until in ((first_signal, deadline), (signal.SIGKILL, deadline + 5)):
            for pidfd in found:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)
            if _all_ended(found, until):
                return len(found)
    finally:
        for pidfd in found:
            os.close(pidfd)
    raise EmbeddedError("a process of an earlier start is still there and cannot be stopped")


def _open_matching(is_ours: Callable[[str], bool]) -> list[int]:
    found = []
    for proc in Path("/proc").iterdir():
        if not proc.name.isdecimal() or int(proc.name) == os.getpid():
            continue
        try:
            pidfd = os.pidfd_open(int(proc.name))
        except OSError:
            continue
        if is_ours(str(proc)):
            found.append(pidfd)
        else:
            os.close(pidfd)
    return found


def _command_line(proc: str) -> bytes:
    try:
        return Path(proc, "cmdline").read_bytes()
    except OSError:
        return b""


def _owner(proc: str) -> int | None:
    try:
        return Path(proc).stat().st_uid
    except FileNotFoundError:
        return None


def _all_ended(pidfds: Iterable[int], deadline: float) -> bool:
    poll = select.poll()
    waiting = set(pidfds)
    for pidfd in waiting:
        poll.register(pidfd, select.POLLIN)  # readable once the process has ended
    while waiting and (left := deadline - time.monotonic()) > 0:
        for pidfd, _ in poll.poll(left * 1000):
            poll.unregister(pidfd)
            waiting.discard(pidfd)
    return not waiting
