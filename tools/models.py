"""What is called: backends and their keys, the scopes there are, the tools that need them."""

from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q

from audit.models import plain_time
from tools.routes import METHODS, MOST_PATTERN, MOST_TOOLS, PATTERN_FORM, check_pattern

# Checked in the database too: what psql enters is put into challenges and statements as it is.
SLUG_FORM = r"^[a-z0-9][a-z0-9-]{0,62}$"
# RFC 6749 section 3.3 scope-token, bounded; no space, quote or backslash.
SCOPE_FORM = r"^[\x21\x23-\x5B\x5D-\x7E]{1,128}$"
TOOL_FORM = r"^[A-Za-z0-9_./:-]{1,128}$"


def _whole(form: str) -> str:
    """Python's `$` also matches before a final newline; PostgreSQL's does not."""
    return form.replace("^", r"\A", 1)[:-1] + r"\Z"


SLUG = RegexValidator(_whole(SLUG_FORM), "Lower-case letters, digits and hyphens, at most 63.")
SCOPE_NAME = RegexValidator(_whole(SCOPE_FORM), 'Printable ASCII without space, " and \\.')
TOOL_NAME = RegexValidator(_whole(TOOL_FORM), "Letters, digits and _ . / : - only, at most 128.")


def validate_pattern(text: str) -> None:
    """A route's path pattern."""
    try:
        check_pattern(text)
    except ValueError as error:
        raise ValidationError(f"It must be: {error}.") from None


class Backend(models.Model):
    """A service that holds data and calls the verify endpoint (OAuth: resource server)."""

    slug = models.CharField(max_length=63, unique=True, validators=[SLUG])
    name = models.CharField(max_length=120)
    audiences = ArrayField(
        models.CharField(max_length=255), help_text="values of `aud` that name this backend (RFC 8707)"
    )
    assertion_audiences = ArrayField(
        models.CharField(max_length=255),
        default=list,
        blank=True,
        help_text="who may get identity assertions",
    )
    accepts_every_issuer = models.BooleanField(
        default=True, help_text="off: only the accepted issuers listed for it, none if none is listed"
    )
    enabled = models.BooleanField(default=True)

    class Meta:
        ordering = ["slug"]
        constraints = [
            models.CheckConstraint(condition=~Q(audiences__contains=[""]), name="backend_audience_not_empty"),
            models.CheckConstraint(condition=Q(slug__regex=SLUG_FORM), name="backend_slug"),
        ]

    def __str__(self) -> str:
        return self.name


class BackendMark(models.Model):
    """What staff say of a backend by yes or no. A row of its own, so that logs from before there was such a mark still
    explain their policy."""

    MARKS = [
        ("may_search", "may ask which users may use a tool, and which tools a user may use"),
        ("enforces_mcp_name", "refuses an MCP call whose Mcp-Name header is not the tool that its body names"),
    ]

    backend = models.ForeignKey(Backend, on_delete=models.CASCADE, related_name="marks")
    mark = models.CharField(max_length=32, choices=MARKS)

    class Meta:
        verbose_name = "mark of a backend"
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["backend", "mark"], name="backend_mark_once"),
            models.CheckConstraint(condition=Q(mark__in=["may_search", "enforces_mcp_name"]), name="backend_mark"),
        ]

    def __str__(self) -> str:
        return f"{self.backend} {self.mark}"


class Route(models.Model):
    """A path of a backend, and the tools of the backend that a request to it stands for: for proxies that ask before
    they let a request through. A path without a route, and a route without tools, is refused."""

    backend = models.ForeignKey(Backend, on_delete=models.CASCADE, related_name="routes")
    path = models.CharField(max_length=MOST_PATTERN, validators=[validate_pattern])
    methods = ArrayField(models.CharField(max_length=7), default=list, blank=True)
    # By name, since a backend may declare a tool later; until then it is refused as unknown.
    tools = ArrayField(models.CharField(max_length=128, validators=[TOOL_NAME]), default=list, blank=True)

    class Meta:
        ordering = ["backend", "path", "methods"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["backend", "path", "methods"], name="route_once"),
            models.CheckConstraint(condition=Q(path__regex=PATTERN_FORM), name="route_path"),
            models.CheckConstraint(condition=Q(methods__contained_by=list(METHODS)), name="route_methods"),
            models.CheckConstraint(condition=Q(tools__len__lte=MOST_TOOLS), name="route_tools"),
        ]

    def __str__(self) -> str:
        return " ".join([*self.methods, self.path])


class BackendKey(models.Model):
    """A secret with which a backend authenticates: `mk_<key id>_<secret>`; only a peppered digest is kept."""

    backend = models.ForeignKey(Backend, on_delete=models.CASCADE, related_name="keys")
    key_id = models.CharField(max_length=16, unique=True)
    digest = models.BinaryField(help_text="HMAC-SHA-256 of the secret under the pepper")
    label = models.CharField(max_length=120, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used = models.DateTimeField(null=True, blank=True, help_text="to the minute")

    class Meta:
        verbose_name = "backend key"
        ordering = ["-created_at"]
        constraints = [
            plain_time("expires_at", "backend_key_expires_at"),
            plain_time("revoked_at", "backend_key_revoked_at"),
            models.CheckConstraint(condition=Q(key_id__regex=r"^[A-Za-z0-9]{12}$"), name="backend_key_id"),
        ]

    def __str__(self) -> str:
        return f"mk_{self.key_id}_…"


class Scope(models.Model):
    """A named permission; may imply others. That implications form no cycle is checked by the database."""

    name = models.CharField(max_length=128, unique=True, validators=[SCOPE_NAME])
    description = models.CharField(max_length=250, blank=True)
    implies = models.ManyToManyField("self", symmetrical=False, blank=True, related_name="implied_by")
    sensitive = models.BooleanField(default=False, help_text="marks calls that need it as sensitive")

    class Meta:
        ordering = ["name"]
        constraints = [models.CheckConstraint(condition=Q(name__regex=SCOPE_FORM), name="scope_name")]

    def __str__(self) -> str:
        return self.name

    def is_used(self) -> bool:
        """Whether anything names it but its own mark and what it implies. Applications above this one name scopes too;
        what staff asked for, or reviewed, must not vanish with one."""
        for relation in Scope._meta.get_fields(include_hidden=True):
            if not (relation.one_to_many or relation.one_to_one) or relation.related_model is PinnedScope:
                continue
            table: Any = relation.related_model
            column = relation.remote_field.name  # type: ignore[union-attr]
            if column != "from_scope" and table._base_manager.filter(**{column: self}).exists():
                return True
        return False


class PinnedScope(models.Model):
    """The mark of a scope whose tools are suspended when their definition changes, until staff approve them again. A
    row of its own, so that logs from before there was such a mark still explain their policy."""

    scope = models.OneToOneField(Scope, on_delete=models.CASCADE, related_name="pin")

    class Meta:
        verbose_name = "pinned scope"
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.scope} is pinned"


class Tool(models.Model):
    """An operation that a backend offers to AI clients, with the scopes that it needs."""

    ACCESS = [("read", "read"), ("write", "write"), ("destructive", "destructive")]
    STATUS = [
        ("pending", "pending"),
        ("active", "active"),
        ("suspended", "suspended"),
        ("retired", "retired"),
    ]

    backend = models.ForeignKey(Backend, on_delete=models.PROTECT, related_name="tools")
    name = models.CharField(max_length=128, validators=[TOOL_NAME])
    description = models.CharField(max_length=2000, blank=True)
    access = models.CharField(max_length=11, choices=ACCESS)
    scopes = models.ManyToManyField(Scope, blank=True, related_name="tools")
    input_schema = models.JSONField(null=True, blank=True)
    definition = models.CharField(max_length=64, blank=True, help_text="SHA-256 of the declared definition, hex")
    status = models.CharField(max_length=9, choices=STATUS, default="pending")

    class Meta:
        ordering = ["backend", "name"]
        constraints = [
            models.UniqueConstraint(fields=["backend", "name"], name="tool_once"),
            models.CheckConstraint(condition=Q(name__regex=TOOL_FORM), name="tool_name"),
            models.CheckConstraint(condition=Q(access__in=["read", "write", "destructive"]), name="tool_access"),
            models.CheckConstraint(
                condition=Q(status__in=["pending", "active", "suspended", "retired"]), name="tool_status"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class ApprovedDefinition(models.Model):
    """A tool's definition as staff last approved it, so that what changed since can be shown. Nothing is decided
    from it."""

    tool = models.OneToOneField(Tool, on_delete=models.CASCADE, related_name="approved")
    content = models.JSONField(help_text="name, description, access, scopes, input_schema")
    at = models.DateTimeField(help_text="when it was approved")
    by = models.CharField(max_length=150, blank=True)
    changed_at = models.DateTimeField(
        null=True, blank=True, help_text="when a declaration made the tool another; null again once staff decided"
    )

    class Meta:
        verbose_name = "approved definition"
        default_permissions = ()
        # query: tools.approval.waiting
        indexes = [models.Index(fields=["changed_at"], name="approved_changed", condition=Q(changed_at__isnull=False))]

    def __str__(self) -> str:
        return f"approved definition of {self.tool}"
