"""Who calls and what they may: issuers and their key sets, clients, grants."""

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q

from audit.models import Subject, plain_time
from tools.models import SLUG, SLUG_FORM, Backend, Scope, Tool

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
MODES = ["interactive", "subagent", "background", "api"]


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


class Grant(models.Model):
    """Staff's word that scopes may be used. Empty fields mean any; deny beats flag beats allow. A deny grant
    without scopes denies everything that it matches."""

    EFFECTS = [("allow", "allow"), ("flag", "allow and flag for review"), ("deny", "deny")]

    effect = models.CharField(max_length=5, choices=EFFECTS, default="allow")
    client = models.ForeignKey(Client, on_delete=models.CASCADE, null=True, blank=True, related_name="grants")
    scopes = models.ManyToManyField(Scope, blank=True, related_name="grants")
    subject = models.ForeignKey(
        Subject, on_delete=models.CASCADE, null=True, blank=True, verbose_name="user", related_name="+"
    )
    role = models.CharField(max_length=255, null=True, blank=True)
    tenant = models.CharField(max_length=255, null=True, blank=True)
    tool = models.ForeignKey(Tool, on_delete=models.CASCADE, null=True, blank=True, related_name="grants")
    modes = ArrayField(
        models.CharField(max_length=11), default=list, blank=True, help_text="agent modes; empty: every mode"
    )
    starts_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    reason = models.CharField(max_length=500)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.CharField(max_length=150, editable=False, blank=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.CheckConstraint(condition=Q(effect__in=["allow", "flag", "deny"]), name="grant_effect"),
            models.CheckConstraint(condition=~Q(reason=""), name="grant_has_reason"),
            models.CheckConstraint(condition=Q(modes__contained_by=MODES), name="grant_modes"),
            models.CheckConstraint(
                condition=Q(starts_at=None) | Q(expires_at=None) | Q(starts_at__lt=F("expires_at")),
                name="grant_starts_before_it_expires",
            ),
            plain_time("starts_at", "grant_starts_at"),
            plain_time("expires_at", "grant_expires_at"),
            plain_time("revoked_at", "grant_revoked_at"),
        ]

    def __str__(self) -> str:
        return f"{self.get_effect_display()} for {self.client or 'any client'}"


class AccessRequest(models.Model):
    """Somebody on the staff asks for a grant, or for a longer life of one; another decides. It has what a grant has,
    so that what is approved is what was asked for. It raises no policy version: the grant that it becomes does."""

    STATUS = [
        ("waiting", "waiting"), ("approved", "approved"), ("rejected", "rejected"), ("withdrawn", "withdrawn"),
        ("lapsed", "lapsed"),
    ]  # fmt: skip

    extends = models.ForeignKey(
        Grant, on_delete=models.CASCADE, null=True, blank=True, related_name="+", help_text="null: a new grant"
    )
    effect = models.CharField(max_length=5, choices=Grant.EFFECTS, default="allow")
    client = models.ForeignKey(Client, on_delete=models.CASCADE, null=True, blank=True, related_name="+")
    scopes = models.ManyToManyField(Scope, blank=True, related_name="+")
    subject = models.ForeignKey(
        Subject, on_delete=models.CASCADE, null=True, blank=True, verbose_name="user", related_name="+"
    )
    role = models.CharField(max_length=255, null=True, blank=True)
    tenant = models.CharField(max_length=255, null=True, blank=True)
    tool = models.ForeignKey(Tool, on_delete=models.CASCADE, null=True, blank=True, related_name="+")
    modes = ArrayField(models.CharField(max_length=11), default=list, blank=True)
    starts_at = models.DateTimeField(null=True, blank=True)
    days = models.IntegerField(null=True, blank=True, help_text="life of the grant from its approval; null: see below")
    expires_at = models.DateTimeField(null=True, blank=True, help_text="its end, where no days are given; null: never")
    reason = models.CharField(max_length=500)
    status = models.CharField(max_length=9, choices=STATUS, default="waiting")
    asked_at = models.DateTimeField(auto_now_add=True)
    asked_by = models.CharField(max_length=120, help_text="staff:<id>")
    asked_by_name = models.CharField(max_length=150)
    lapses_at = models.DateTimeField(help_text="undecided until then, it lapses")
    decided_at = models.DateTimeField(null=True, blank=True)
    decided_by = models.CharField(max_length=120, blank=True)
    decided_by_name = models.CharField(max_length=150, blank=True)
    answer = models.CharField(max_length=500, blank=True, help_text="why it was decided so")
    grant = models.ForeignKey(Grant, on_delete=models.SET_NULL, null=True, blank=True, related_name="requests")

    class Meta:
        verbose_name = "request"
        default_permissions = ("view",)
        permissions = [("decide_accessrequest", "Can approve and reject requests of others")]
        ordering = ["-asked_at"]
        indexes = [
            # query: clients.requests.waiting
            models.Index(fields=["lapses_at"], name="request_waiting", condition=Q(status="waiting")),
        ]

    def __str__(self) -> str:
        return f"request {self.pk}"


class Review(models.Model):
    """An access review: the grants of one client or scope as they were when it began, each to be kept or revoked. When
    it is finished it is a record in the log."""

    client = models.ForeignKey(Client, on_delete=models.CASCADE, null=True, blank=True, related_name="+")
    scope = models.ForeignKey(Scope, on_delete=models.CASCADE, null=True, blank=True, related_name="+")
    reason = models.CharField(max_length=500)
    started_at = models.DateTimeField(auto_now_add=True)
    started_by = models.CharField(max_length=120, help_text="staff:<id>")
    started_by_name = models.CharField(max_length=150)
    finished_at = models.DateTimeField(null=True, blank=True)
    finished_by_name = models.CharField(max_length=150, blank=True)

    class Meta:
        default_permissions = ("add", "change", "view")
        ordering = ["-started_at"]
        constraints = [
            models.CheckConstraint(
                condition=Q(client=None, scope__isnull=False) | Q(client__isnull=False, scope=None),
                name="review_of_one",
            ),
        ]

    def __str__(self) -> str:
        return f"review of {self.client or self.scope}"


class ReviewItem(models.Model):
    """One grant in a review: what it said when the review began, and what was decided of it."""

    DECISIONS = [("", "open"), ("keep", "keep"), ("revoke", "revoke")]

    review = models.ForeignKey(Review, on_delete=models.CASCADE, related_name="items")
    grant = models.ForeignKey(Grant, on_delete=models.CASCADE, related_name="+")
    sentence = models.TextField(help_text="the grant in words, when the review began")
    decision = models.CharField(max_length=6, choices=DECISIONS, blank=True)
    note = models.CharField(max_length=500, blank=True)
    decided_at = models.DateTimeField(null=True, blank=True)
    decided_by_name = models.CharField(max_length=150, blank=True)

    class Meta:
        verbose_name = "reviewed grant"
        default_permissions = ()
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["review", "grant"], name="review_item_once"),
            models.CheckConstraint(condition=Q(decision__in=["", "keep", "revoke"]), name="review_item_decision"),
        ]

    def __str__(self) -> str:
        return f"{self.sentence}: {self.decision or 'open'}"
