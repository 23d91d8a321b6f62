"""How often something may be called."""

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q

from clients.models.callers import Client
from clients.models.grants import MODES
from tools.models import Tool

MOST_CALLS = 1_000_000_000


class Limit(models.Model):
    """At most `count` calls in a period, counted apart for each user, user and client, client, tool or tenant.
    `client`, `tool`, `tenant` and `modes` say which calls it is of; empty means any. Each tenant, and each mode that it
    names, has a budget of its own."""

    PER = [
        ("subject", "user"), ("subject_client", "user and client"), ("client", "client"), ("tool", "tool"),
        ("tenant", "tenant"),
    ]  # fmt: skip
    PERIODS = [("second", "second"), ("minute", "minute"), ("hour", "hour"), ("day", "day")]
    ON_OUTAGE = [
        ("access", "refuse calls of destructive tools, let others through"), ("deny", "refuse the call"),
        ("allow", "let the call through"),
    ]  # fmt: skip

    per = models.CharField("counted for each", max_length=14, choices=PER, default="subject")
    count = models.IntegerField("calls", validators=[MinValueValidator(1), MaxValueValidator(MOST_CALLS)])
    period = models.CharField("in a", max_length=6, choices=PERIODS, default="minute")
    burst = models.IntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)],
        help_text="how many at once, at most; empty: all of them",
    )  # fmt: skip
    client = models.ForeignKey(Client, on_delete=models.CASCADE, null=True, blank=True, related_name="limits")
    tool = models.ForeignKey(Tool, on_delete=models.CASCADE, null=True, blank=True, related_name="limits")
    tenant = models.CharField(max_length=255, null=True, blank=True)
    modes = ArrayField(
        models.CharField(max_length=11), default=list, blank=True, help_text="agent modes; empty: every mode"
    )
    on_outage = models.CharField(
        "when calls cannot be counted", max_length=6, choices=ON_OUTAGE, default="access",
    )  # fmt: skip
    reason = models.CharField(max_length=500)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.CharField(max_length=150, editable=False, blank=True)

    class Meta:
        ordering = ["per", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["per", "client", "tool", "tenant", "modes"], name="limit_once", nulls_distinct=False
            ),
            models.CheckConstraint(
                condition=Q(per__in=["subject", "subject_client", "client", "tool", "tenant"]), name="limit_per"
            ),
            models.CheckConstraint(condition=Q(count__gte=1, count__lte=MOST_CALLS), name="limit_count"),
            models.CheckConstraint(condition=Q(period__in=["second", "minute", "hour", "day"]), name="limit_period"),
            models.CheckConstraint(
                condition=Q(burst=None) | Q(burst__gte=1, burst__lte=F("count")), name="limit_burst"
            ),
            models.CheckConstraint(condition=Q(modes__contained_by=MODES), name="limit_modes"),
            models.CheckConstraint(condition=Q(on_outage__in=["access", "deny", "allow"]), name="limit_on_outage"),
            models.CheckConstraint(condition=~Q(reason=""), name="limit_has_reason"),
        ]

    def __str__(self) -> str:
        return f"{self.count} calls a {self.period} for each {self.get_per_display()}"
