"""`manage.py` on a machine that the units run, with what a unit gives its process and nothing else. As root:

    /usr/lib/muniment/.venv/bin/python /usr/lib/muniment/deploy/manage_as.py status
    /usr/lib/muniment/.venv/bin/python /usr/lib/muniment/deploy/manage_as.py --unit=seal seal --explain

    ... --unit=seal MUNIMENT_LOCAL_PASSWORDS=true seal --close --by anna --and bert --reason "the disk of Tuesday"

Without --unit those are the settings of `muniment-migrate`, which are manage.py's own. Unit, drop-ins and credentials
are read as root; the command runs as the unit's user, who sees copies of the credentials in a file system that this
command alone has mounted, as LoadCredential does it. Exit status: the command's; 2 where it cannot be run.
"""

import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

UNITS = Path(os.environ.get("MUNIMENT_UNITS") or "/etc/systemd/system")
OWN = Path("/run/muniment-manage")  # a folder for the mount; what is in it is seen by this command alone
_NOT = ("#", ";", "[", "")  # how a line begins that assigns nothing
INSIDE = "MUNIMENT_MANAGE_INSIDE"


class CannotRun(Exception):
    """One line that says why."""


def assignments(unit: str) -> list[tuple[str, str]]:
    """What the unit file and its drop-ins assign, in order. CannotRun where there is none."""
    path = UNITS / f"muniment-{unit}.service"
    try:
        texts = [file.read_text() for file in (path, *sorted(Path(f"{path}.d").glob("*.conf")))]
    except OSError as error:
        raise CannotRun(f"{path} cannot be read: {error.strerror}") from None
    lines = re.sub(r"\\\n\s*", " ", "\n".join(texts)).splitlines()
    return [
        (name, value) for name, sep, value in (line.partition("=") for line in lines) if sep and name[:1] not in _NOT
    ]


def environment(found: list[tuple[str, str]]) -> dict[str, str]:
    """The process's variables: those of EnvironmentFile=, then those of Environment=, as systemd has them."""
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    for path in (value.removeprefix("-") for name, value in found if name == "EnvironmentFile"):
        try:
            lines = [line.strip().partition("=") for line in Path(path).read_text().splitlines()]
        except OSError as error:
            raise CannotRun(f"{path} cannot be read: {error.strerror}") from None
        variables |= {name: value.strip("\"'") for name, sep, value in lines if sep and name[:1] not in _NOT}
    for pair in (pair for name, value in found if name == "Environment" for pair in value.split()):
        name, _, value = pair.partition("=")
        variables[name] = value.replace("%d", str(OWN))
    return variables


def credentials(found: list[tuple[str, str]], user: pwd.struct_passwd) -> None:
    """Copies of the unit's credentials, for its user, in a file system of memory that nobody else has mounted."""
    mode = f"mode=0500,uid={user.pw_uid},gid={user.pw_gid},size=1m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", mode, "tmpfs", str(OWN)], check=True)
    for name, _, path in (value.partition(":") for key, value in found if key == "LoadCredential"):
        try:
            shutil.copyfile(path, OWN / name)
        except OSError as error:
            raise CannotRun(f"{path} cannot be read: {error.strerror}") from None
        (OWN / name).chmod(0o400)
        os.chown(OWN / name, user.pw_uid, user.pw_gid)


def run(unit: str, command: list[str]) -> None:
    """Become the unit's user, with its settings, and then manage.py. Returns only by CannotRun."""
    found = assignments(unit)
    one = dict(found)
    try:
        user = pwd.getpwnam(one["User"])
    except KeyError:
        raise CannotRun(f"the user of muniment-{unit} is not on this machine (systemd-sysusers)") from None
    variables = environment(found)
    while command and re.match(r"[A-Z_][A-Z0-9_]*=", command[0]):  # for this command alone, as in a shell
        name, _, given = command.pop(0).partition("=")
        variables[name] = given
    credentials(found, user)
    os.chdir(one["WorkingDirectory"])
    os.umask(0o077)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    os.execve(sys.executable, [sys.executable, "manage.py", *command], variables)  # noqa: S606 - no shell is wanted


def main(arguments: list[str]) -> None:
    """Read the one option, go into a mount namespace of its own, and run."""
    unit = "migrate"
    if arguments and arguments[0].startswith("--unit="):
        unit = arguments.pop(0).removeprefix("--unit=")
    if not arguments or not re.fullmatch(r"[a-z]+", unit):
        raise CannotRun("manage_as.py [--unit=web|seal|worker|beat|migrate] [NAME=VALUE...] COMMAND [ARGUMENT...]")
    if os.geteuid() != 0:
        raise CannotRun("it needs root, to read the credentials")
    if os.environ.get(INSIDE):
        run(unit, arguments)
    OWN.mkdir(mode=0o711, exist_ok=True)
    again = ["unshare", "--mount", "--", sys.executable, __file__, f"--unit={unit}", *arguments]
    os.execvpe("unshare", again, os.environ | {INSIDE: "1"})  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CannotRun as why:
        sys.stderr.write(f"muniment: {why}\n")
        sys.exit(2)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"muniment: it cannot be run: {error}\n")
        sys.exit(2)
