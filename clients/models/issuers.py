"""Whose tokens we accept, and how they are read, asked about and bound: issuers, and what belongs to each."""

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from audit.models import plain_time

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


def default_algorithms() -> list[str]:
    """What most authorization servers sign with."""
    return ["RS256", "ES256"]


class Issuer(models.Model):
    """An OIDC or OAuth authorization server whose tokens we accept. `issuer` is compared as a string."""

    issuer = models.CharField(max_length=255, unique=True, help_text="exactly as in the tokens' `iss`")
    enabled = models.BooleanField(default=True)
    algorithms = ArrayField(models.CharField(max_length=8), default=default_algorithms)
    jwks_uri = models.URLField(max_length=500, null=True, blank=True, help_text="empty: by discovery")
    tenant_claim = models.CharField(max_length=120, null=True, blank=True)
    roles_claim = models.CharField(max_length=120, null=True, blank=True)
    leeway = models.IntegerField(
        default=30, validators=[MinValueValidator(0), MaxValueValidator(300)], help_text="seconds"
    )
    max_lifetime = models.IntegerField(
        default=86400, validators=[MinValueValidator(60)], help_text="seconds from issue to expiry, at most"
    )
    allowed_networks = ArrayField(
        models.CharField(max_length=49),
        default=list,
        blank=True,
        help_text="private networks (CIDR) from which its keys may be fetched",
    )

    class Meta:
        ordering = ["issuer"]
        constraints = [
            models.CheckConstraint(condition=~Q(issuer=""), name="issuer_not_empty"),
            models.CheckConstraint(condition=Q(algorithms__contained_by=ALGORITHMS), name="issuer_algorithms"),
            models.CheckConstraint(condition=Q(leeway__gte=0, leeway__lte=300), name="issuer_leeway"),
            models.CheckConstraint(condition=Q(max_lifetime__gte=60), name="issuer_max_lifetime"),
        ]

    def __str__(self) -> str:
        return self.issuer


class KeySet(models.Model):
    """The issuer's keys as last fetched. The set itself is policy, so that a change reaches every process by the
    policy version; when it was fetched is not."""

    issuer = models.OneToOneField(Issuer, on_delete=models.CASCADE, related_name="key_set")
    jwks = models.JSONField(null=True, help_text="RFC 7517; null until a set was fetched")
    fetched_at = models.DateTimeField(null=True, help_text="last success")
    attempted_at = models.DateTimeField(null=True, help_text="start of the last attempt; claims the fetch")
    finished_at = models.DateTimeField(null=True, help_text="end of the last attempt")
    error = models.CharField(max_length=250, blank=True)

    class Meta:
        verbose_name = "key set"
        constraints = [plain_time("fetched_at", "key_set_fetched_at")]

    def __str__(self) -> str:
        return f"keys of {self.issuer}"


class ClaimMapping(models.Model):
    """Which claims of an issuer's tokens say what, where they are not the standard ones. `tenant_claim` and
    `roles_claim` stand at the issuer itself. A row of its own, as the next two, so that logs from before there was one
    still explain their policy."""

    issuer = models.OneToOneField(Issuer, on_delete=models.CASCADE, related_name="mapping")
    subject_claim = models.CharField(
        max_length=120, blank=True, help_text="who the user is; empty: sub. Changing it makes every user a new one"
    )
    email_claim = models.CharField(max_length=120, blank=True, help_text="empty: email")
    scope_claims = ArrayField(
        models.CharField(max_length=120), default=list, blank=True, help_text="empty: scope, scp and permissions"
    )
    client_id_claims = ArrayField(
        models.CharField(max_length=120),
        default=list,
        blank=True,
        help_text="the first that a token has; empty: client_id, azp, cid, appid",
    )

    class Meta:
        verbose_name = "claim mapping"
        default_permissions = ()
        constraints = [
            models.CheckConstraint(condition=~Q(scope_claims__contains=[""]), name="mapping_scope_claims"),
            models.CheckConstraint(condition=~Q(client_id_claims__contains=[""]), name="mapping_client_id_claims"),
        ]

    def __str__(self) -> str:
        return f"claims of {self.issuer}"


class Introspection(models.Model):
    """How to ask an issuer about its opaque tokens (RFC 7662). The secret is protected under a key of its own (holder
    `introspection:<issuer id>`, AAD: the holder) and reaches no log: that it changed is told by `secret_set_at`. How
    asking went is no policy."""

    METHODS = [("client_secret_basic", "in the Authorization header"), ("client_secret_post", "in the form")]

    issuer = models.OneToOneField(Issuer, on_delete=models.CASCADE, related_name="introspection")
    endpoint = models.URLField(max_length=500)
    method = models.CharField("sends its secret", max_length=19, choices=METHODS, default="client_secret_basic")
    client_id = models.CharField("client id", max_length=255, help_text="under which the issuer knows Muniment")
    secret = models.BinaryField(null=True, help_text="protected")
    secret_set_at = models.DateTimeField(null=True)
    signed = models.BooleanField(default=False, help_text="take signed answers only (RFC 9701)")
    cache_seconds = models.IntegerField(
        default=60,
        validators=[MinValueValidator(0), MaxValueValidator(600)],
        help_text="for how long an answer may be used again, at most; a token that is revoked works as long",
    )
    error = models.CharField(max_length=250, blank=True, help_text="of the newest question; empty: it was answered")
    failed_at = models.DateTimeField(null=True)
    answered_at = models.DateTimeField(null=True, help_text="to the minute")

    class Meta:
        default_permissions = ()
        constraints = [
            models.CheckConstraint(
                condition=Q(method__in=["client_secret_basic", "client_secret_post"]), name="introspection_method"
            ),
            models.CheckConstraint(
                condition=Q(cache_seconds__gte=0, cache_seconds__lte=600), name="introspection_cache_seconds"
            ),
            plain_time("secret_set_at", "introspection_secret_set_at"),
        ]

    def __str__(self) -> str:
        return f"introspection by {self.issuer}"


class IssuerBinding(models.Model):
    """What an issuer's tokens must be bound to. A token that is bound needs its proof whatever this says."""

    REQUIRE = [
        ("any", "to a key or a certificate"), ("dpop", "to a key (DPoP)"), ("mtls", "to a certificate (mTLS)"),
        ("", "nothing"),
    ]  # fmt: skip

    issuer = models.OneToOneField(Issuer, on_delete=models.CASCADE, related_name="binding")
    require = models.CharField("its tokens must be bound", max_length=4, choices=REQUIRE, default="any", blank=True)
    dpop_nonce = models.BooleanField(
        "nonces (DPoP)", default=False, help_text="a proof must hold a nonce that Muniment gave out"
    )

    class Meta:
        verbose_name = "binding of tokens"
        default_permissions = ()
        constraints = [
            models.CheckConstraint(condition=Q(require__in=["", "any", "dpop", "mtls"]), name="binding_require")
        ]

    def __str__(self) -> str:
        return f"binding of tokens of {self.issuer}"
