"""What the tokens of a policy file's issuers must be bound to, after the issuer itself was written."""

from msgspec import UnsetType

from clients.models import Issuer, IssuerBinding
from clients.policyfile import BindingEntry
from clients.policyfile_claims import Note

WORDS = {
    "": "need not be bound",
    "any": "must be bound",
    "dpop": "must be bound by DPoP",
    "mtls": "must be bound by mTLS",
}


def apply_binding(row: Issuer, entry: BindingEntry | UnsetType | None, note: Note) -> None:
    """Make the binding of an issuer that of its entry. Left out it stays, since a file that knows nothing of it must
    not take a demand away; null takes it away. `note` is told the change."""
    if isinstance(entry, UnsetType):
        return
    found = IssuerBinding.objects.select_for_update().filter(issuer=row).first()
    if entry is None:
        if found is not None:
            found.delete()
            note("update", "issuer", row.issuer, f"its tokens {WORDS['']}")
        return
    wanted = found or IssuerBinding(issuer=row)
    require = entry.require or ""
    if found is not None and (found.require, found.dpop_nonce) == (require, entry.dpop_nonce):
        return
    wanted.require, wanted.dpop_nonce = require, entry.dpop_nonce
    wanted.save()
    nonces = ", with nonces" if entry.dpop_nonce else ""
    note("update", "issuer", row.issuer, f"its tokens {WORDS[require]}{nonces}")
