"""What an issuer's tokens must be bound to, edited on the issuer's page."""

from clients.admin.issuer_parts import IssuerPart
from clients.models import IssuerBinding


class IssuerBindingInline(IssuerPart):
    """Demanded of every token of the issuer. One that is bound needs its proof whatever stands here."""

    model = IssuerBinding
    fields = ["require", "dpop_nonce"]
