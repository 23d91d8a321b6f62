"""An issuer's page “Try claims”: what Muniment would read of a token, tried with claims that staff paste, also with a
mapping that is not saved. Pasted claims are personal data: they come by POST, and are in no URL, session, log or table.
"""

import time
from typing import Any, cast

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables

from audit.admin_base import LinesField, PlainForm
from clients.admin.issuer_parts import COLUMNS, rules_of
from clients.claims_trial import MAX_TEXT, Trial, tried, without_signature
from clients.jwks import IssuerPolicy
from clients.mapping import MAX_CLAIM, problems
from clients.models import Issuer, OAuthClientId
from tools.models import Backend, Scope


class ClaimsForm(PlainForm):
    """Claims, the backend that they come to, and how the issuer's claims are read: as stored, or otherwise."""

    claims = forms.CharField(
        label="Claims", max_length=MAX_TEXT, strip=False,
        widget=forms.Textarea(attrs={"rows": 12, "class": "mono", "spellcheck": "false", "autocomplete": "off"}),
        help_text="The payload of an access token, as JSON, or the whole token: of that the signature is thrown away"
        " at once. Nothing is kept.",
    )  # fmt: skip
    backend = forms.ModelChoiceField(Backend.objects.order_by("name", "slug"), empty_label=None)
    tenant_claim = forms.CharField(max_length=MAX_CLAIM, required=False)
    roles_claim = forms.CharField(max_length=MAX_CLAIM, required=False)
    subject_claim = forms.CharField(max_length=MAX_CLAIM, required=False, help_text="Empty: sub")
    email_claim = forms.CharField(label="E-mail claim", max_length=MAX_CLAIM, required=False, help_text="Empty: email")
    scope_claims = LinesField(longest=MAX_CLAIM, required=False, help_text="One a line. Empty: scope, scp, permissions")
    client_id_claims = LinesField(
        longest=MAX_CLAIM, required=False, help_text="One a line. Empty: client_id, azp, cid, appid"
    )

    def clean_claims(self) -> str:
        """Without the signature, also where the page shows it again."""
        return without_signature(self.cleaned_data["claims"])

    def clean(self) -> dict[str, Any]:
        """The mapping keeps the rules of one that is saved."""
        data = super().clean() or {}
        for member, words in problems(rules_of(data), data.get("roles_claim")).items():
            self.add_error(COLUMNS[member], ValidationError(f"{words[0].upper()}{words[1:]}."))
        return data

    @property
    def pasted(self) -> forms.BoundField:
        """The field of the claims; a token is shown again without its signature."""
        if self.is_bound and (text := self.data.get("claims")):
            data = cast(QueryDict, self.data).copy()
            data["claims"] = without_signature(text)
            self.data = data
        return self["claims"]

    @property
    def mapping(self) -> list[forms.BoundField]:
        """The fields of how claims are read."""
        return [self[name] for name in ("tenant_claim", "roles_claim", *COLUMNS.values())]


class WithBench(admin.ModelAdmin):
    """The page, for the admin of issuers."""

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.try_claims)
        return [path("<int:number>/claims/", view, name="clients_issuer_claims"), *super().get_urls()]

    def offered(self, request: HttpRequest, obj: Any) -> list[dict[str, Any]]:
        """With a button to the page."""
        url = reverse("admin:clients_issuer_claims", args=[obj.pk])
        actions: list[dict[str, Any]] = super().offered(request, obj)  # type: ignore[misc]
        return [*actions, {"label": "Try claims", "danger": False, "url": url}]

    @method_decorator(sensitive_post_parameters())
    @method_decorator(sensitive_variables())
    def try_claims(self, request: HttpRequest, number: int) -> HttpResponse:
        """GET asks for claims, POST shows what is read of them. Neither changes or keeps anything."""
        if not request.user.has_perm("clients.view_issuer"):
            raise PermissionDenied
        issuer = Issuer.objects.select_related("mapping", "binding").filter(pk=number).first()
        if issuer is None:
            raise Http404
        form = ClaimsForm(request.POST) if request.method == "POST" else ClaimsForm(initial=_stored(issuer))
        trial = _tried(issuer, form.cleaned_data) if form.is_bound and form.is_valid() else None
        context = {
            **self.admin_site.each_context(request), "title": "Try claims", "issuer": issuer, "form": form,
            "opts": self.opts, "trial": trial, "unsaved": trial is not None and _differs(issuer, form.cleaned_data),
        }  # fmt: skip
        return TemplateResponse(request, "admin/claims_bench.html", context, status=400 if form.errors else 200)


def _stored(issuer: Issuer) -> dict[str, Any]:
    """How the issuer's claims are read now."""
    mapping = getattr(issuer, "mapping", None)
    return {
        "tenant_claim": issuer.tenant_claim or "", "roles_claim": issuer.roles_claim or "",
        **{name: getattr(mapping, name) if mapping else "" for name in COLUMNS.values()},
    }  # fmt: skip


def _differs(issuer: Issuer, data: dict[str, Any]) -> bool:
    return any((data[name] or "") != (value or "") for name, value in _stored(issuer).items())


def _tried(issuer: Issuer, data: dict[str, Any]) -> Trial:
    backend, binding = data["backend"], getattr(issuer, "binding", None)
    policy = IssuerPolicy(
        id=issuer.pk, issuer=issuer.issuer, algorithms=frozenset(issuer.algorithms), leeway=issuer.leeway,
        max_lifetime=issuer.max_lifetime, tenant_claim=data["tenant_claim"] or None,
        roles_claim=data["roles_claim"] or None, keys=(), fetched=True, claims=rules_of(data),
        require_binding=binding.require if binding else "",
    )  # fmt: skip
    listed = backend.accepts_every_issuer or backend.accepted_issuers.filter(issuer=issuer).exists()
    audiences = frozenset(filter(None, backend.audiences))
    found = tried(data["claims"], policy, audiences, issuer.enabled and listed, time.time())
    return _scopes(_client(_audience(found, backend), issuer))


def _audience(found: Trial, backend: Backend) -> Trial:
    """What it should have been, which the token need not say."""
    return found.marked("audience", note=f"tokens for {backend} name {' or '.join(backend.audiences) or 'nothing yet'}")


def _client(found: Trial, issuer: Issuer) -> Trial:
    """Row 9: which AI client the id belongs to."""
    if any(one.part == "client_id" and one.reason for one in found.findings) or not found.findings[1:]:
        return found
    ids = found.values("client_id")
    if not ids:
        return found.marked("client_id", reason="client_unknown", detail="the token names no client")
    known = OAuthClientId.objects.filter(issuer=issuer, oauth_id=ids[0]).select_related("client").first()
    if known is None:
        return found.marked("client_id", reason="client_unknown", detail="no AI client has this id at this issuer")
    if known.client.status != "active":
        return found.marked("client_id", reason="client_suspended", detail=f"{known.client} is suspended")
    return found.marked("client_id", note=f"the id of {known.client}")


def _scopes(found: Trial) -> Trial:
    """Which of the scopes are none of ours: they give nothing."""
    named = found.values("scopes")
    strange = sorted(set(named) - set(Scope.objects.filter(name__in=named).values_list("name", flat=True)))
    words = f"not registered here, so of no use: {', '.join(strange)}" if strange else ""
    return found.marked("scopes", note=words) if words else found
