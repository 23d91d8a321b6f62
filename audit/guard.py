"""The guard row: whoever changes a hold, drops a partition, deletes records or erases a user does it under its lock, so
that none of them can pass another between looking and doing (DESIGN.md section 6, Storage)."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections, transaction

from audit.models import Guard


@contextmanager
def locked(using: str = "default", lock_timeout: str | None = None) -> Iterator[None]:
    """A transaction that holds the guard row to its end. `lock_timeout` (PostgreSQL's notation, such as `200ms`) is for
    all locks of the transaction. Raises django.db.OperationalError when the row, or another lock, cannot be had in
    that time."""
    with transaction.atomic(using=using):
        if lock_timeout is not None:
            with connections[using].cursor() as cursor:
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", [lock_timeout])
        Guard.objects.using(using).select_for_update().get(pk=1)
        yield
