"""Who the staff are to the platform: their keys for the API, and how the identity provider knows them."""

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models


class StaffKey(models.Model):
    """A secret with which a tool of a member of staff reads records: `sk_<key id>_<secret>`; it has its owner's roles.
    Only a peppered digest is kept."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    key_id = models.CharField(max_length=16, unique=True)
    digest = models.BinaryField(help_text="HMAC-SHA-256 of the secret under the pepper")
    label = models.CharField(max_length=120, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used = models.DateTimeField(null=True, blank=True, help_text="to the minute")

    class Meta:
        verbose_name = "staff key"
        ordering = ["-created_at"]
        default_permissions = ("view", "change")

    def __str__(self) -> str:
        return f"sk_{self.key_id}_…"


class StaffIdentity(models.Model):
    """A member of staff as the identity provider knows them: matched by `iss` and `sub`, never by e-mail address."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="identity")
    issuer = models.CharField(max_length=255)
    sub = models.CharField(max_length=255)
    last_sign_in = models.DateTimeField(null=True)

    class Meta:
        verbose_name = "staff identity"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["issuer", "sub"], name="staff_identity_once")]

    def __str__(self) -> str:
        return self.sub


class StaffTenant(models.Model):
    """A tenant that a member of staff is confined to. Without one they see every tenant; with some, those alone."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="tenants")
    tenant = models.CharField(max_length=255)

    class Meta:
        verbose_name = "tenant of a member of staff"
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["user", "tenant"], name="staff_tenant_once"),
            models.CheckConstraint(condition=~models.Q(tenant=""), name="staff_tenant_not_empty"),
        ]

    def __str__(self) -> str:
        return self.tenant


class Notification(models.Model):
    """Something that somebody should look at, told once while it lasts: in words that name nobody, with the page that
    says more. What it tells of is elsewhere; this may be deleted."""

    kind = models.CharField(max_length=30)
    about = models.CharField(max_length=255, help_text="of which: never a name of a person")
    words = models.TextField()
    path = models.CharField(max_length=300, help_text="of the page that says more")
    tenant = models.CharField(max_length=255, null=True, help_text="of which it is; of none, none who is confined sees")
    made_at = models.DateTimeField()
    over_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()
        ordering = ["-made_at", "-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "about"], name="notification_open_once", condition=models.Q(over_at=None)
            )
        ]
        # query: what is over, to be forgotten; the newest, for a page
        indexes = [models.Index(fields=["made_at"], name="notification_made_at")]

    def __str__(self) -> str:
        return f"{self.kind}: {self.about}"


class NotificationDelivery(models.Model):
    """A notification on its way to one place: a member of staff's mailbox, or the operator's webhook."""

    notification = models.ForeignKey(Notification, on_delete=models.CASCADE, related_name="deliveries")
    to = models.CharField(max_length=40, help_text="staff:<id>, or webhook")
    tries = models.IntegerField(default=0)
    next_at = models.DateTimeField()
    done_at = models.DateTimeField(null=True)
    given_up_at = models.DateTimeField(null=True)
    error = models.TextField(default="")

    class Meta:
        verbose_name = "delivery of a notification"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["notification", "to"], name="notification_delivery_once")]
        indexes = [
            # query: what is due
            models.Index(
                fields=["next_at"], name="notification_due", condition=models.Q(done_at=None, given_up_at=None)
            )
        ]

    def __str__(self) -> str:
        return self.to


class NotificationChoice(models.Model):
    """Which kinds of notifications a member of staff wants no e-mail of. Without one: none of them."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", primary_key=True)
    off = ArrayField(models.CharField(max_length=30), default=list)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return ", ".join(self.off)
