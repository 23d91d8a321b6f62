"""The AI clients, and which issuers' tokens a backend accepts."""

from urllib.parse import urlsplit

from django.db import models
from django.db.models import Q

from clients.models.issuers import Issuer
from tools.models import SLUG, SLUG_FORM, Backend


class Client(models.Model):
    """An AI client surface, known by one or more OAuth client ids per issuer."""

    KINDS = [("mcp", "MCP client"), ("chatgpt", "ChatGPT app"), ("mobile", "mobile app"), ("other", "other")]
    STATUS = [("active", "active"), ("suspended", "suspended")]

    slug = models.CharField(max_length=63, unique=True, validators=[SLUG])
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=10, choices=KINDS, default="mcp")
    status = models.CharField(max_length=9, choices=STATUS, default="active")

    class Meta:
        ordering = ["slug"]
        constraints = [
            models.CheckConstraint(condition=Q(status__in=["active", "suspended"]), name="client_status"),
            models.CheckConstraint(condition=Q(slug__regex=SLUG_FORM), name="client_slug"),
            models.CheckConstraint(condition=Q(kind__in=["mcp", "chatgpt", "mobile", "other"]), name="client_kind"),
        ]

    def __str__(self) -> str:
        return self.name


class OAuthClientId(models.Model):
    """The id under which one issuer knows a client."""

    client = models.ForeignKey(Client, on_delete=models.CASCADE, related_name="oauth_client_ids")
    issuer = models.ForeignKey(Issuer, on_delete=models.PROTECT, related_name="client_ids")
    # `client_id` in the contract; that name is taken by the column of `client`.
    oauth_id = models.CharField("client id", max_length=255)

    class Meta:
        verbose_name = "OAuth client id"
        constraints = [models.UniqueConstraint(fields=["issuer", "oauth_id"], name="oauth_client_id_once")]

    def __str__(self) -> str:
        return self.oauth_id


class AcceptedIssuer(models.Model):
    """An issuer that a backend accepts, where the backend does not accept every enabled one."""

    backend = models.ForeignKey(Backend, on_delete=models.CASCADE, related_name="accepted_issuers")
    issuer = models.ForeignKey(Issuer, on_delete=models.PROTECT, related_name="accepted_by")

    class Meta:
        verbose_name = "accepted issuer"
        constraints = [models.UniqueConstraint(fields=["backend", "issuer"], name="accepted_issuer_once")]

    def __str__(self) -> str:
        return f"{self.backend} accepts {self.issuer}"


class ClientMetadata(models.Model):
    """What is published about a client at the URL that is its client id (OAuth Client ID Metadata Document): shown as
    unverified until staff approve it. Nothing is decided from it."""

    LOGO_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"]

    url = models.CharField("client id", max_length=255, unique=True)
    name = models.CharField(max_length=120, blank=True)
    uri = models.CharField("home page", max_length=500, blank=True)
    logo = models.BinaryField(null=True)
    logo_type = models.CharField(max_length=10, blank=True)
    digest = models.CharField(max_length=64, blank=True, help_text="SHA-256 of what is shown, hex")
    fetched_at = models.DateTimeField(null=True, help_text="last success")
    attempted_at = models.DateTimeField(null=True)
    failures = models.IntegerField(default=0, help_text="since the last success")
    error = models.CharField(max_length=250, blank=True)
    approved_digest = models.CharField(max_length=64, blank=True)
    approved_at = models.DateTimeField(null=True)
    approved_by = models.CharField(max_length=150, blank=True)

    class Meta:
        verbose_name = "published client metadata"
        default_permissions = ()
        constraints = [
            models.CheckConstraint(
                condition=Q(logo_type__in=["", "image/png", "image/jpeg", "image/webp", "image/gif"]),
                name="client_logo_type",
            )
        ]

    def __str__(self) -> str:
        return self.name or self.url

    @property
    def host(self) -> str:
        """Who publishes it: the host and port of the URL."""
        return urlsplit(self.url).netloc

    @property
    def is_approved(self) -> bool:
        """Whether what is shown is what staff approved."""
        return bool(self.digest) and self.approved_digest == self.digest
