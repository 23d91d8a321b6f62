"""Who else may end access: transmitters of security events, and identity providers that manage users."""

import uuid

from django.db import models
from django.db.models import Q

from audit.models import Subject, plain_time
from clients.models.issuers import Issuer
from tools.models import SLUG, SLUG_FORM


class SignalStream(models.Model):
    """A stream of Security Event Tokens (OpenID Shared Signals 1.0) about an issuer's users: pushed to us (RFC 8935),
    or polled by us (RFC 8936). `digest` is that of the token with which a transmitter pushes; `token`, with which we
    poll, is protected under a key of its own (holder `signals:<id>`, AAD: the holder). Neither reaches a log: that one
    changed is told by `token_set_at`. What it knows of keys and of how it goes is no policy."""

    DELIVERY = [("push", "the transmitter pushes"), ("poll", "Muniment polls")]

    name = models.CharField(max_length=63, unique=True, validators=[SLUG])
    issuer = models.ForeignKey(Issuer, on_delete=models.CASCADE, related_name="signal_streams")
    transmitter = models.CharField(max_length=255, help_text="exactly as in the event tokens' `iss`")
    audience = models.CharField(max_length=255, help_text="what the event tokens' `aud` must name")
    jwks_uri = models.URLField(
        max_length=500, null=True, blank=True, help_text="the transmitter's keys; empty: by its configuration"
    )
    delivery = models.CharField(max_length=4, choices=DELIVERY, default="push")
    poll_endpoint = models.URLField(max_length=500, null=True, blank=True)
    digest = models.BinaryField(null=True, help_text="HMAC-SHA-256 of the push token under the pepper")
    token = models.BinaryField(null=True, help_text="protected")
    token_set_at = models.DateTimeField(null=True)
    enabled = models.BooleanField(default=True)
    jwks = models.JSONField(null=True)
    keys_fetched_at = models.DateTimeField(null=True)
    keys_attempted_at = models.DateTimeField(null=True)
    polled_at = models.DateTimeField(null=True)
    received_at = models.DateTimeField(null=True, help_text="the newest event")
    verified_at = models.DateTimeField(null=True, help_text="the newest event that only tests the stream")
    error = models.CharField(max_length=250, blank=True)

    class Meta:
        verbose_name = "signal stream"
        default_permissions = ("add", "change", "view")
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(condition=Q(name__regex=SLUG_FORM), name="signal_stream_name"),
            models.CheckConstraint(
                condition=Q(delivery="push") | Q(delivery="poll", poll_endpoint__isnull=False),
                name="signal_stream_delivery",
            ),
            models.CheckConstraint(condition=~Q(transmitter="") & ~Q(audience=""), name="signal_stream_names"),
            plain_time("token_set_at", "signal_stream_token_set_at"),
        ]

    def __str__(self) -> str:
        return self.name


class SignalReceipt(models.Model):
    """An event token that was taken, so that the same one is not recorded twice. Forgotten after a month."""

    stream = models.ForeignKey(SignalStream, on_delete=models.CASCADE, related_name="+")
    jti = models.BinaryField(help_text="SHA-256 of the token's jti")
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "receipt of an event"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["stream", "jti"], name="signal_receipt_once")]
        indexes = [models.Index(fields=["at"], name="signal_receipt_at")]  # query: the monthly sweep

    def __str__(self) -> str:
        return f"event of {self.stream}"


class ScimConnection(models.Model):
    """An identity provider that manages an issuer's users here (SCIM 2.0, RFC 7644), and the digest of its token."""

    ATTRIBUTES = [("externalId", "externalId"), ("userName", "userName")]

    name = models.CharField(max_length=63, unique=True, validators=[SLUG])
    issuer = models.ForeignKey(Issuer, on_delete=models.CASCADE, related_name="scim_connections")
    subject_attribute = models.CharField(
        "attribute that is the tokens' sub", max_length=10, choices=ATTRIBUTES, default="externalId"
    )
    digest = models.BinaryField(null=True, help_text="HMAC-SHA-256 of the token under the pepper")
    token_set_at = models.DateTimeField(null=True)
    enabled = models.BooleanField(default=True)
    last_used = models.DateTimeField(null=True, help_text="to the minute")

    class Meta:
        verbose_name = "SCIM connection"
        default_permissions = ("add", "change", "view")
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(condition=Q(name__regex=SLUG_FORM), name="scim_connection_name"),
            models.CheckConstraint(
                condition=Q(subject_attribute__in=["externalId", "userName"]), name="scim_connection_attribute"
            ),
            plain_time("token_set_at", "scim_connection_token_set_at"),
        ]

    def __str__(self) -> str:
        return self.name


class ScimUser(models.Model):
    """A user as one identity provider manages them. What it says of the person is protected under the subject's own
    data key (AAD: the id), so that erasing the user takes it too; userName and externalId are found by keyed hash."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    connection = models.ForeignKey(ScimConnection, on_delete=models.CASCADE, related_name="users")
    subject = models.ForeignKey(Subject, on_delete=models.CASCADE, related_name="+", verbose_name="user")
    user_name_key = models.BinaryField()
    external_id_key = models.BinaryField(null=True)
    content = models.BinaryField(help_text="protected: the resource as JSON (RFC 7643)")
    active = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)
    modified_at = models.DateTimeField()
    version = models.IntegerField(default=1)

    class Meta:
        verbose_name = "SCIM user"
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["connection", "user_name_key"], name="scim_user_name_once"),
            # query: the filter externalId eq
            models.UniqueConstraint(
                fields=["connection", "external_id_key"], name="scim_external_id_once",
                condition=Q(external_id_key__isnull=False),
            ),
            # Two who manage one person would undo each other's word.
            models.UniqueConstraint(fields=["subject"], name="scim_subject_once"),
        ]  # fmt: skip
        # query: a page of a connection's users, in the order in which they came
        indexes = [models.Index(fields=["connection", "created_at", "id"], name="scim_user_page")]

    def __str__(self) -> str:
        return str(self.id)
