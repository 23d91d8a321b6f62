"""Issuers and their key sets, clients and their OAuth ids, and backends with the issuers that they accept."""

from ipaddress import ip_network
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from audit.admin_base import (
    Action,
    ChoicesField,
    ConfirmForm,
    LinesField,
    PolicyAdmin,
    PolicyForm,
    PolicyInline,
    ReadOnlyAdmin,
    Refused,
)
from audit.templatetags.muniment import when
from clients import keysets
from clients.admin.claims_bench import WithBench
from clients.admin.issuer_binding import IssuerBindingInline
from clients.admin.issuer_introspection import AcceptedIssuerFormSet, IntrospectionInline
from clients.admin.issuer_parts import ClaimMappingInline
from clients.admin.issuer_presets import WithPresets
from clients.admin.published import WithPublished
from clients.introspection_setup import clash_of_backend, clash_of_issuer, lock
from clients.models import ALGORITHMS, AcceptedIssuer, Client, Issuer, KeySet, OAuthClientId, default_algorithms
from tools.admin import BackendAdmin, pill
from tools.models import Backend


def network(text: str) -> str:
    """A network in CIDR form. Raises ValueError, in words."""
    try:
        return str(ip_network(text))
    except ValueError:
        raise ValueError("not a network such as 10.0.0.0/8, without host bits") from None


class IssuerForm(PolicyForm):
    """Algorithms from the list, networks in CIDR form."""

    algorithms = ChoicesField(
        ALGORITHMS, initial=default_algorithms, help_text="Its tokens are refused when signed with any other."
    )
    jwks_uri = forms.URLField(
        label="JWKS URI", required=False, max_length=500, assume_scheme="https", empty_value=None,
        help_text="Empty: found by discovery.",
    )  # fmt: skip
    allowed_networks = LinesField(
        network, 49, required=False, help_text="One a line. Only for issuers inside your own network."
    )

    class Meta:
        model = Issuer
        fields = "__all__"
        labels: ClassVar = {"jwks_uri": "JWKS URI"}
        help_texts: ClassVar = {"issuer": "Exactly as its tokens have it as iss."}


@admin.register(Issuer)
class IssuerAdmin(WithBench, WithPresets, PolicyAdmin):
    """Whose tokens are accepted."""

    form = IssuerForm
    intro = "Authorization servers whose tokens we accept."
    empty = "No issuer yet. Add the authorization server that your users sign in to."
    list_display = ["issuer", "state", "signs", "keys"]
    search_fields = ["issuer"]
    fields = [
        "issuer", "algorithms", "jwks_uri", "tenant_claim", "roles_claim", "leeway", "max_lifetime",
        "allowed_networks",
    ]  # fmt: skip
    inlines = [ClaimMappingInline, IntrospectionInline, IssuerBindingInline]
    can_act = [
        Action("disable", "Disable", "From the next call on none of its tokens is accepted.",
               "disable", lambda i: i.enabled, danger=True),
        Action("enable", "Enable", "Its tokens are accepted again.", "enable", lambda i: not i.enabled),
    ]  # fmt: skip

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Users are known by issuer: another name is another issuer."""
        return ["issuer"] if obj else []

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("key_set", "introspection")

    @admin.display(description="state", ordering="enabled")
    def state(self, issuer: Issuer) -> str:
        asked = getattr(issuer, "introspection", None)
        said = pill("enabled" if issuer.enabled else "disabled")
        if not issuer.enabled or asked is None:
            return said
        words = pill("does not answer", "deny") if asked.error else pill("introspection", "plain")
        return format_html("{} {}", said, words)

    @admin.display(description="signs with")
    def signs(self, issuer: Issuer) -> str:
        return ", ".join(issuer.algorithms)

    @admin.display(description="keys fetched")
    def keys(self, issuer: Issuer) -> str:
        key_set = getattr(issuer, "key_set", None)
        if key_set is None:
            return "never"
        url = reverse("admin:clients_keyset_change", args=[key_set.pk])
        return format_html('<a href="{}">{}</a>', url, when(key_set.fetched_at, "never"))

    def disable(self, request: HttpRequest, issuer: Issuer, data: dict[str, Any]) -> str:
        """Kill switch."""
        issuer.enabled = False
        issuer.save(update_fields=["enabled"])
        return f"{issuer} is disabled: its tokens are refused."

    def enable(self, request: HttpRequest, issuer: Issuer, data: dict[str, Any]) -> str:
        """Back on."""
        lock()
        if hasattr(issuer, "introspection") and (words := clash_of_issuer(issuer)):
            raise Refused(words)
        issuer.enabled = True
        issuer.save(update_fields=["enabled"])
        return f"{issuer} is enabled."


@admin.register(KeySet)
class KeySetAdmin(ReadOnlyAdmin):
    """Fetched, never edited."""

    intro = "Issuers' public keys as last fetched. They are fetched again every five minutes."
    empty = "No key set yet. It is fetched at the first call with a token of an issuer, or by the worker."
    list_display = ["issuer", "state", "fetched", "holds"]
    list_select_related = ["issuer"]
    fields = ["issuer", "state", "holds", "fetched", "attempted", "error"]
    can_act = [
        Action("refresh", "Refresh now", "Fetches the issuer's keys. A key that it has withdrawn stops working.",
               "refresh", form=ConfirmForm, in_transaction=False)
    ]  # fmt: skip

    @admin.display(description="state")
    def state(self, key_set: KeySet) -> str:
        if key_set.error:
            return pill("last fetch failed", "deny")
        return pill("fetched", "allow") if key_set.fetched_at else pill("not fetched yet", "flag")

    @admin.display(description="keys")
    def holds(self, key_set: KeySet) -> str:
        keys = (key_set.jwks or {}).get("keys", [])
        named = ", ".join(f"{key.get('kid') or 'no kid'} ({key.get('alg') or key.get('kty')})" for key in keys)
        return named or "none"

    @admin.display(description="fetched", ordering="fetched_at")
    def fetched(self, key_set: KeySet) -> str:
        return when(key_set.fetched_at, "never")

    @admin.display(description="last attempt")
    def attempted(self, key_set: KeySet) -> str:
        return when(key_set.attempted_at, "never")

    def refresh(self, request: HttpRequest, key_set: KeySet, data: dict[str, Any]) -> str:
        """Fetch now, outside of any transaction."""
        changed = keysets.refresh(key_set.issuer_id)
        key_set.refresh_from_db()
        if key_set.error:
            raise Refused(f"The keys could not be fetched, so the old ones stay: {key_set.error}")
        return "The keys have changed; the new ones are in use." if changed else "The keys are as they were."


class OAuthClientIdInline(PolicyInline):
    """The ids under which issuers know the client."""

    model = OAuthClientId


@admin.register(Client)
class ClientAdmin(WithPublished, PolicyAdmin):
    """AI clients."""

    intro = "AI clients that act for your users: ChatGPT apps, Claude, your own."
    empty = "No client yet. Add one with the OAuth client ids that its tokens carry."
    list_display = ["name", "slug", "kind", "state", "ids"]
    list_filter = ["status", "kind"]
    search_fields = ["slug", "name", "oauth_client_ids__oauth_id"]
    fields = ["slug", "name", "kind"]
    inlines = [OAuthClientIdInline]
    can_act = [
        Action("suspend", "Suspend", "From the next call on everything that it asks is refused.",
               "suspend", lambda c: c.status == "active", danger=True),
        Action("activate", "Activate", "Its calls are decided by the policy again.",
               "activate", lambda c: c.status != "active"),
    ]  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("oauth_client_ids")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Records name a client by its slug."""
        return ["slug"] if obj else []

    @admin.display(description="state", ordering="status")
    def state(self, client: Client) -> str:
        return pill(client.status)

    @admin.display(description="OAuth client ids")
    def ids(self, client: Client) -> str:
        return ", ".join(one.oauth_id for one in client.oauth_client_ids.all()) or "none: its tokens are refused"

    def suspend(self, request: HttpRequest, client: Client, data: dict[str, Any]) -> str:
        """Kill switch."""
        client.status = "suspended"
        client.save(update_fields=["status"])
        return f"{client} is suspended: its next call is refused."

    def activate(self, request: HttpRequest, client: Client, data: dict[str, Any]) -> str:
        """Back on."""
        client.status = "active"
        client.save(update_fields=["status"])
        return f"{client} is active."


class AcceptedIssuerInline(PolicyInline):
    """The issuers that a backend accepts, where it does not accept every one."""

    model = AcceptedIssuer
    formset = AcceptedIssuerFormSet


@admin.register(Backend)
class BackendWithIssuersAdmin(BackendAdmin):
    """A backend, with the issuers it accepts."""

    inlines = [AcceptedIssuerInline, *BackendAdmin.inlines]

    def enable(self, request: HttpRequest, backend: Backend, data: dict[str, Any]) -> str:
        """Its keys work again, unless it could not tell whom to ask about opaque tokens."""
        lock()
        if words := clash_of_backend(backend, backend.accepted_issuers.values_list("issuer", flat=True)):
            raise Refused(words)
        return super().enable(request, backend, data)
