"""Who the users are, and the wrapped keys under which what is personal in records and here is protected."""

from django.db import models
from django.db.models import Q

from audit.models.log import plain_time


class DataKey(models.Model):
    """A key under which personal data of one holder is protected, wrapped by a key outside the database
    (AES-256-GCM, AAD: the holder). Destroying the row is what erasure is."""

    holder = models.CharField(
        primary_key=True, max_length=120, help_text="usr_..., backend:<slug>:<day>, staff:<id> or system"
    )
    wrapped = models.BinaryField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "data key"

    def __str__(self) -> str:
        return self.holder


class Subject(models.Model):
    """A user as one issuer knows them. Identifiers are protected under the subject's own data key (AAD: uid and
    column) and found by keyed hash; outside Muniment only the random uid is used."""

    uid = models.CharField(primary_key=True, max_length=40)
    issuer = models.CharField(max_length=255)
    identity_key = models.BinaryField(null=True, unique=True, help_text="keyed hash of iss and sub; finds a caller")
    sub = models.BinaryField(null=True, help_text="protected")
    email = models.BinaryField(null=True, help_text="protected")
    email_key = models.BinaryField(null=True, help_text="keyed hash of the e-mail address, lower case")
    first_seen = models.DateTimeField(auto_now_add=True)
    blocked_at = models.DateTimeField(null=True, blank=True)
    signed_out_at = models.DateTimeField(null=True, blank=True, help_text="tokens issued before this are refused")
    deactivated_at = models.DateTimeField(
        null=True, blank=True, help_text="by the identity provider; it alone takes that back"
    )
    erased_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "user"
        permissions = [("view_personal", "Can see who a user is, and other personal data")]
        indexes = [
            models.Index(fields=["email_key"], name="subject_by_email"),  # query: audit.subjects.find_by_email
            # query: governance.stops, for the banner of every page of the admin
            models.Index(fields=["blocked_at"], name="subject_blocked", condition=Q(blocked_at__isnull=False)),
            # query: governance.stops.deactivated, and the filter of the list of users
            models.Index(
                fields=["deactivated_at"], name="subject_deactivated", condition=Q(deactivated_at__isnull=False)
            ),
            models.Index(
                fields=["first_seen"], name="subject_signed_out", condition=Q(signed_out_at__isnull=False)
            ),  # query: the filter of the list of users
        ]
        constraints = [
            plain_time("blocked_at", "subject_blocked_at"),
            plain_time("signed_out_at", "subject_signed_out_at"),
            plain_time("deactivated_at", "subject_deactivated_at"),
            plain_time("erased_at", "subject_erased_at"),
        ]

    def __str__(self) -> str:
        return self.uid


class SubjectTenant(models.Model):
    """A tenant that a user's tokens have named: whose staff, where staff are confined to tenants, may see the user."""

    subject = models.CharField(max_length=40, help_text="uid")
    tenant = models.CharField(max_length=255)
    first_seen = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "tenant of a user"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["subject", "tenant"], name="subject_tenant_once")]
        indexes = [models.Index(fields=["tenant", "subject"], name="subject_by_tenant")]  # query: a tenant's users

    def __str__(self) -> str:
        return f"{self.subject} in {self.tenant}"
