"""What staff do besides changing policy, for the log: sign-ins, look-ups of people, views of personal data, exports,
requests and reviews, and what they decide on keeping and forgetting. It goes through the outbox, like all that is not
a web writer's own."""

from typing import Any

from django.utils import timezone

from audit.models import Outbox

KINDS = frozenset({"staff", "request", "review", "retention", "hold", "erasure"})


def tell(
    actor: str,
    name: str,
    action: str,
    private: dict[str, Any] | None = None,
    *,
    kind: str = "staff",
    using: str = "default",
    **members: Any,
) -> None:
    """Have it recorded that somebody did something: in the caller's transaction, if there is one, else at once.

    `actor` is `staff:<id>` (or `system`, for one who could not be established), `action` a code such as
    `person.lookup`, `members` go into the statement: nothing there may name a person or be free text (DESIGN.md
    section 6). `name` and `private` (reasons, notes) become protected disclosures under the actor's key, which every
    auditor can read: no identifier of a user belongs there either. Members that are None are left out. `using` is the
    database alias whose transaction it belongs to.
    Raises ValueError for a kind that staff do not make."""
    if kind not in KINDS:
        raise ValueError(f"not a kind of what staff do: {kind}")
    said = {key: value for key, value in members.items() if value is not None}
    kept = {"actor_name": name or None, **(private or {})}
    Outbox.objects.using(using).create(
        kind=kind,
        members={"action": action, **said},
        private={key: value for key, value in kept.items() if value is not None},
        at=timezone.now(),
        actor=actor,
        xact="",
    )
