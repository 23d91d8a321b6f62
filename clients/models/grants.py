"""Staff's word on what clients may use, how it is asked for, and how it is reviewed."""

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q

from audit.models import Subject, plain_time
from clients.models.callers import Client
from tools.models import Scope, Tool

MODES = ["interactive", "subagent", "background", "api"]


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
