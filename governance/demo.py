"""The demo's world: policy, staff logins, backend key, two weeks of history, and what is kept of it. Demo mode only.

The history is not painted: every record is one of a real call, verified, decided and written by the same code
as any other, under a record clock that is set in the past, which only works while the log is empty.
"""

import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template

from django.conf import settings
from django.contrib.auth import get_user_model
from django.utils import timezone

from audit.maintenance import make_partition, make_partitions, months
from audit.models import Head
from audit.outbox import acting
from clients import jwks, policyfile, policyfile_apply
from clients.models import Grant, Issuer, KeySet
from governance import demo_issuer, demo_keeping, devkeys, role_mapping, staff_roles
from governance.demo_history import DAYS, write_history
from tools import credentials
from tools.models import Backend, BackendKey

ACTOR = "command:demo_load"
LOGIN = "admin"  # the superuser; the others have one role each
PASSWORD = "muniment-demo-{}"  # noqa: S105
LOGINS = {LOGIN: "", **role_mapping.BY_SLUG}
POLICY = Path(__file__).with_name("demo_policy.yaml")
EXPIRES_SOON = timedelta(days=5)


def load() -> str:
    """Make what is missing of the demo; what was loaded once, and then changed or deleted, stays so. Returns what
    was done, in a line."""
    prepare_partitions()
    known = Issuer.objects.filter(issuer__startswith="http://127.0.0.1:", issuer__endswith=demo_issuer.SUFFIX).first()
    if known is None:
        load_policy()
    else:
        follow_port(known)
    publish_keys()
    key = backend_key()
    empty = Head.objects.get().next == 0
    if known is None or empty:
        make_staff()
    if not empty:  # also after a first run that was killed on its way
        return "the demo data is there already"
    # The record clock dates the policy's records to the start of the history; the admin shows the same.
    Grant.objects.update(created_at=timezone.now() - timedelta(days=DAYS))
    calls = write_history(key)
    demo_keeping.make()
    return f"loaded the demo data: {calls} calls of the past {DAYS} days"


def prepare_partitions() -> None:
    """The months that the history falls in, and those ahead, where this process may make tables; else the default
    partition keeps the records."""
    if "owner" in settings.DATABASES:
        make_partitions()
        for month in months((datetime.now(UTC) - timedelta(days=DAYS)).date(), 2):
            make_partition(month)


def load_policy() -> None:
    """The demo's policy file, with the issuer's name and the date soon to come filled in."""
    soon = (timezone.now() + EXPIRES_SOON).replace(microsecond=0)
    text = Template(POLICY.read_text()).substitute(issuer=demo_issuer.issuer(), soon=soon.isoformat())
    policyfile_apply.apply(policyfile.parse(text), POLICY.name)


def follow_port(known: Issuer) -> None:
    """After MUNIMENT_PORT changed: the issuer has another name. Its users' past stays under the old one."""
    if known.issuer != demo_issuer.issuer():
        with acting(ACTOR, "demo_load", "MUNIMENT_PORT changed"):
            known.issuer = demo_issuer.issuer()
            known.save(update_fields=["issuer"])


def publish_keys() -> None:
    """The demo issuer's keys, put where fetching would put them: it is not served yet, and it is ourselves."""
    issuer = Issuer.objects.filter(issuer=demo_issuer.issuer()).first()
    if issuer is None:
        return
    now = timezone.now()
    fetched = {"fetched_at": now, "attempted_at": now, "finished_at": now, "error": ""}
    document = jwks.normalise(demo_issuer.key_set())
    if not KeySet.objects.filter(issuer=issuer, jwks=document).update(**fetched):
        with acting(ACTOR, "demo_load", "the demo issuer's keys"):
            KeySet.objects.update_or_create(issuer=issuer, defaults={"jwks": document, **fetched})


def key_file() -> Path:
    """Where the demo's backend key is kept, so that the printed call works after a restart."""
    directory = Path(settings.MUNIMENT_VAR) / "keys"
    devkeys.private_directory(directory)
    return directory / "demo_backend_key"


def backend_key() -> str:
    """The key with which the printed call is made: the one that is kept, where it still works, else a new one."""
    path = key_file()
    if path.exists() and works(key := path.read_text().strip()):
        return key
    backend = Backend.objects.get(slug="inner")
    path.unlink(missing_ok=True)
    with acting(ACTOR, "demo_load", "the key of the printed call"):
        key = credentials.issue(backend, label="demo")
    return devkeys.read_or_make(path, lambda: key)


def works(key: str) -> bool:
    """Whether a backend key is a good one of this database."""
    credential = credentials.read(f"Bearer {key}")
    row = BackendKey.objects.filter(key_id=credential.key_id).first() if credential else None
    if row is None:
        return False
    expires = row.expires_at.timestamp() if row.expires_at else None
    known = credentials.KnownKey(row.key_id, row.backend_id, bytes(row.digest), expires, row.revoked_at is not None)
    return credentials.check(credential, known, timezone.now().timestamp())


def make_staff() -> None:
    """The demo's logins: a superuser, and one for each role."""
    users = get_user_model().objects
    for name, role in LOGINS.items():
        if users.filter(username=name).exists():
            continue
        address, password = f"{name}@example.com", PASSWORD.format(name)
        if not role:
            users.create_superuser(name, address, password)
            continue
        user = users.create_user(name, address, password, is_staff=True, first_name=role)
        staff_roles.give(user, [role])


def hello() -> str:
    """What a newcomer needs, to be printed; holds a token and the demo's backend key."""
    url = settings.MUNIMENT_URL
    token = demo_issuer.mint("alice", "claude", "memory:read")
    return f"""
Muniment runs at {url} in demo mode.

  Admin       {url}/admin/
  Sign in as  {logins()}
  API         {url}/reference

Ask whether alice, through Claude, may recall her memories. The token is good for 8 hours:

curl -s {url}/v1/verify -H "Authorization: Bearer {key_file().read_text().strip()}" \\
  -H "Content-Type: application/json" -d '{{"token": "{token}", "tool": "memory.recall"}}'

Another token (users alice and bob; clients chatgpt, claude and inner-ios):

{prefix()}.venv/bin/python manage.py demo_token --user bob --client chatgpt --scope "memory:read memory:write"
"""


def logins() -> str:
    """The demo's names, and how their passwords are made, of those that still have them."""
    users = get_user_model().objects.filter(username__in=LOGINS, is_active=True)
    good = {user.username for user in users if user.check_password(PASSWORD.format(user.username))}
    if not good:
        return "(the demo's logins were changed or removed)"
    names = [name for name in LOGINS if name in good]
    example = PASSWORD.format(names[-1])
    return f"{', '.join(names)};\n{' ' * 14}the password is {PASSWORD.format('NAME')}, such as {example}"


def prefix() -> str:
    """What makes a command of a second shell join this instance: nothing, where it is in the usual folder."""
    usual = Path("var").absolute()
    return "" if usual == settings.MUNIMENT_VAR else f"MUNIMENT_VAR={shlex.quote(str(settings.MUNIMENT_VAR))} "
