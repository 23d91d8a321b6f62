"""`make bench-search`: the pages of the evidence at ten million records, timed as HTTP requests.

    python -m bench search [--records N] [--keep FOLDER] [--serve] [--times N]

Fills a database of its own, unless FOLDER has one from before; with `--serve` it only keeps that database's servers
running, and says how to reach them.
"""

import argparse
import base64
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.platform import KEYS, PORT
from governance import embedded, embedded_postgres

RECORDS, PEOPLE = 10_000_000, 100_000
# A server for ten million records has this much at least; the embedded one is made for small machines.
SETTINGS = {
    "shared_buffers": "2GB", "effective_cache_size": "8GB", "work_mem": "16MB", "max_wal_size": "8GB",
    "checkpoint_timeout": "15min", "random_page_cost": "1.1", "max_parallel_workers_per_gather": "0",
}  # fmt: skip
OF_SERVERS = ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL")


def main(arguments: list[str]) -> None:
    """Fill, time, print."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what was started is stopped then too
    with folder(options.keep) as place, database(place):
        ready(options.records)
        if options.serve:
            serve()
        else:
            from bench import index_cost, searching

            searching.measure(options.times, options.only)
            if not options.no_cost:
                index_cost.measure()


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m bench search")
    parser.add_argument("--records", type=int, default=RECORDS, help="how many records to fill an empty folder with")
    parser.add_argument("--keep", type=Path, help="the folder that the filled database stays in")
    parser.add_argument("--serve", action="store_true", help="only fill, and keep the servers running until stopped")
    parser.add_argument("--times", type=int, default=20, help="requests for each line of the table, at least 20")
    parser.add_argument("--only", default="", help="only the lines whose name holds this")
    parser.add_argument("--no-cost", action="store_true", help="leave out what the indexes cost the recorder")
    return parser.parse_args(arguments)


@contextmanager
def folder(keep: Path | None) -> Iterator[Path]:
    """The folder to work in, which a temporary one is unless it is kept."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        keep.chmod(0o711)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="muniment-bench-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@contextmanager
def database(place: Path) -> Iterator[None]:
    """The servers, or those that the environment names (those of another run with --serve), and Django set up as a web
    process with the folder's keys."""
    embedded_postgres.SETTINGS |= SETTINGS
    with running(place):
        os.environ |= {
            "MUNIMENT_MODE": "demo", "MUNIMENT_PROCESS": "web", "MUNIMENT_VAR": str(place),
            "MUNIMENT_PORT": str(PORT), "DJANGO_SETTINGS_MODULE": "bench.settings",
        }  # fmt: skip
        for name in KEYS:
            os.environ[f"MUNIMENT_{name}"] = key(place / f"{name.lower()}.key")
        import django

        django.setup()
        yield


@contextmanager
def running(place: Path) -> Iterator[None]:
    """PostgreSQL, sized as said above, and Redis."""
    if all(os.environ.get(name) for name in OF_SERVERS):
        yield
        return
    with embedded.start(place / "servers") as servers:
        urls = (servers.database_url, servers.owner_url, servers.redis_url)
        os.environ |= dict(zip(OF_SERVERS, urls, strict=True))
        yield


def key(path: Path) -> str:
    """A key of the bench's own, made once; without it what is protected in a kept folder opens no more."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    return path.read_text()


def ready(records: int) -> None:
    """The tables as they are now, filled if they are empty."""
    from django.core.management import call_command
    from django.db import connections

    from audit.models import Head

    with connections["owner"].cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")  # a web process's limit, which migrations do not have
    call_command("migrate", database="owner", verbosity=0)
    filled = Head.objects.get().next
    if not filled:
        from bench import filling

        start = time.monotonic()
        people = max(1000, min(PEOPLE, records // 100))
        filling.fill(os.environ["DATABASE_OWNER_URL"], records, people, lambda text: say(f"  {text}"))
        say(f"filled with {records:,} records in {time.monotonic() - start:.0f} s")
    elif filled < records:
        say(f"the kept database has {filled:,} records; it is used as it is")


def serve() -> None:
    """Until SIGINT or SIGTERM."""
    for name in OF_SERVERS:
        say(f"export {name}='{os.environ[name]}'")
    while True:
        time.sleep(60)


def say(text: str) -> None:
    """A line, at once."""
    print(text, flush=True)
