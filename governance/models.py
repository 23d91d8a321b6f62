"""Who the staff are to the platform: their keys for the API, and how the identity provider knows them."""

from django.conf import settings
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
