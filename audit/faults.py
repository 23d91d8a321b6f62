"""Why an entry was not recorded."""

from uuid import UUID


class Stale(Exception):
    """It was decided under an older policy: decide again."""


class SubjectChanged(Exception):
    """The subject's state is not what the decision assumed. `state` is (blocked, signed out at, gone)."""

    def __init__(self, state: tuple) -> None:
        super().__init__()
        self.state = state


class AlreadyRecorded(Exception):
    """The call has its outcome already; `record` is the one that counts."""

    def __init__(self, record: UUID) -> None:
        super().__init__()
        self.record = record


class QueueFull(Exception):
    """More is waiting to be recorded than the process can hold."""


class Unavailable(Exception):
    """The log cannot be written at the moment."""
