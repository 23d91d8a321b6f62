"""OCSF events (class 6003, API Activity) as JSON Lines; what of a record is in one says `audit.ocsf`."""

from collections.abc import Sequence

from django.conf import settings

from audit import ocsf
from audit.search_pages import Row

SQL = ("id", "at", "leaf", "statement")


def page(rows: Sequence[Row], sealed: int) -> bytes:
    """The lines of some rows, which are index, decision and SQL."""
    origin = settings.MUNIMENT_LOG_ORIGIN
    made = [ocsf.line((record, index, at, leaf, said), origin) for index, _, record, at, leaf, said in rows]
    return b"\n".join([*made, b""])
