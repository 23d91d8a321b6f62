"""After a fork: a lock that another thread held stays locked in the child for ever, and over a connection that both use
each reads the other's answers. Servers fork after the application was imported (gunicorn with `preload`, Celery)."""

import os
from typing import Protocol
from weakref import WeakSet


class Forked(Protocol):
    """What has something that a child must not share."""

    def after_fork(self) -> None:
        """Let go of it, in the child, where no other thread runs yet."""


_alive: WeakSet[Forked] = WeakSet()
_process = os.getpid()


def remember(one: Forked) -> None:
    """Call its `after_fork` in every child that this process forks, for as long as it lives."""
    _alive.add(one)


def notice() -> None:
    """Before something is used that a child must not share: some servers fork without telling Python (uWSGI)."""
    if os.getpid() != _process:
        _in_child()


def _in_child() -> None:
    global _process
    for one in list(_alive):
        one.after_fork()
    _process = os.getpid()


os.register_at_fork(after_in_child=_in_child)
