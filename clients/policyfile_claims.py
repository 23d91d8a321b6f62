"""How the claims of a policy file's issuers are read, after the issuer itself was written."""

from collections.abc import Callable
from typing import Any

from audit.models import Subject
from clients.models import ClaimMapping, Issuer
from clients.policyfile import ClaimsEntry

Note = Callable[[str, str, object, str], None]


def apply_claims(row: Issuer, entry: ClaimsEntry | None, note: Note, notices: list[str]) -> None:
    """Make the mapping of an issuer that of its entry; left out, its tokens are read by the standard claims. `note` is
    told the change, `notices` what the person should know."""
    found = ClaimMapping.objects.select_for_update().filter(issuer=row).first()
    before = _subject(found)
    if entry is None:
        if found is not None:
            found.delete()
            note("update", "issuer", row.issuer, "no longer maps claims")
            _warn(row, before, "sub", notices)
        return
    values: dict[str, Any] = {
        "subject_claim": entry.subject,
        "email_claim": entry.email,
        "scope_claims": list(dict.fromkeys(entry.scopes)),
        "client_id_claims": list(dict.fromkeys(entry.client_id)),
    }
    wanted = found or ClaimMapping(issuer=row)
    differing = [name for name, value in values.items() if found is None or getattr(found, name) != value]
    if not differing:
        return
    for name in differing:
        setattr(wanted, name, values[name])
    wanted.save()
    note("update", "issuer", row.issuer, f"claims: {', '.join(differing)}")
    _warn(row, before, _subject(wanted), notices)


def _subject(mapping: ClaimMapping | None) -> str:
    return (mapping.subject_claim if mapping else "") or "sub"


def _warn(row: Issuer, before: str, now: str, notices: list[str]) -> None:
    if before != now and Subject.objects.filter(issuer=row.issuer).exists():
        notices.append(
            f"users of {row.issuer} are known by {now} and no longer by {before}: each of them is a new user, without"
            " the grants, blocks and history of the old one"
        )
