"""Whether a call gets as far as the rules about it (rows 9 to 15), if its token is genuine: its backend must be
enabled, or the backend's own keys do not work, and must accept an issuer that knows the client, and the user."""

from governance.decision import Policy
from governance.snapshot import Snapshot

BACKEND_DISABLED, NO_ISSUER = "backend_disabled", "no_issuer"


def issuers_of(policy: Policy, client_id: int) -> frozenset[str]:
    """The issuers, by their exact names, that know the client under some OAuth client id. `client_id` is a row's."""
    return frozenset(issuer for (issuer, _), client in policy.clients.items() if client.id == client_id)


def obstacle(snapshot: Snapshot, backend_id: int, issuers: frozenset[str], issuer: str | None = None) -> str | None:
    """What stops every call before the rules: `backend_disabled`, `no_issuer`, or None for nothing. `issuers` are the
    client's; `issuer` is that of the one user who is asked about. A client without any is a matter of row 9."""
    backend = snapshot.backends.get(backend_id)
    if backend is None:
        return BACKEND_DISABLED
    wanted = issuers if issuer is None else issuers & {issuer}
    return NO_ISSUER if issuers and not wanted & backend.issuers.keys() else None
