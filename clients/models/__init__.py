"""Who calls and what they may. `issuers` whose tokens count, `callers` the clients, `grants` and `limits` what they
may, `signals` who else may end access."""

from clients.models.callers import AcceptedIssuer, Client, ClientMetadata, OAuthClientId
from clients.models.grants import MODES, AccessRequest, Grant, Review, ReviewItem
from clients.models.issuers import (
    ALGORITHMS,
    ClaimMapping,
    Introspection,
    Issuer,
    IssuerBinding,
    KeySet,
    default_algorithms,
)
from clients.models.limits import Limit
from clients.models.signals import ScimConnection, ScimUser, SignalReceipt, SignalStream

__all__ = [
    "ALGORITHMS",
    "MODES",
    "AcceptedIssuer",
    "AccessRequest",
    "ClaimMapping",
    "Client",
    "ClientMetadata",
    "Grant",
    "Introspection",
    "Issuer",
    "IssuerBinding",
    "KeySet",
    "Limit",
    "OAuthClientId",
    "Review",
    "ReviewItem",
    "ScimConnection",
    "ScimUser",
    "SignalReceipt",
    "SignalStream",
    "default_algorithms",
]
