"""System > Signal streams: who may end access by security events, how they reach us, and how it goes."""

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.html import format_html

from audit.admin_base import Action, ConfirmForm, PolicyAdmin, PolicyForm, Refused
from audit.templatetags.muniment import when
from clients.introspection_setup import MAX_SECRET, wrong_endpoint, wrong_secret
from clients.models import SignalStream
from clients.signals import credentials, keys
from tools.admin import pill

SHOWN = "_muniment_token_made"  # on a request: the push token that it made
AGAIN = "Type it again: it would be sent elsewhere than it was given for."


class StreamForm(PolicyForm):
    """Who sends, about whose users, and how. The token with which we poll goes in and is never shown; it stays until
    another is typed, but only for the address that it was given for."""

    jwks_uri = forms.URLField(
        label="JWKS URI", required=False, max_length=500, assume_scheme="https", empty_value=None,
        help_text="Where its keys are. Empty: found by its configuration.",
    )  # fmt: skip
    poll_endpoint = forms.URLField(
        required=False, max_length=500, assume_scheme="https", empty_value=None,
        help_text="Only where Muniment polls (RFC 8936).",
    )  # fmt: skip
    new_token = forms.CharField(
        label="Token for polling", required=False, strip=False, max_length=MAX_SECRET,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )  # fmt: skip

    class Meta:
        model = SignalStream
        fields = ["name", "issuer", "transmitter", "audience", "jwks_uri", "delivery", "poll_endpoint"]
        labels = {"jwks_uri": "JWKS URI"}
        help_texts = {
            "transmitter": "Exactly as its event tokens have it as iss, such as https://ssf.example.",
            "audience": "What its event tokens have as aud.",
            "jwks_uri": "Where its keys are. Empty: found by its configuration.",
            "name": "Part of the address that a transmitter pushes to, and of what is recorded. It cannot be changed.",
            "issuer": "Whose users its events are about, and no others. It cannot be changed.",
        }

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        if "new_token" in self.fields:
            set_at = self.instance.token_set_at if self.instance.token is not None else None
            stays = f"Set {when(set_at)}, and not shown. Empty: it stays." if set_at else "Kept encrypted, never shown."
            self.fields["new_token"].help_text = stays

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if name == "logout":
            raise forms.ValidationError("That is where issuers report logouts.")
        return name

    def clean_jwks_uri(self) -> str | None:
        return self._address("jwks_uri")

    def clean_poll_endpoint(self) -> str | None:
        return self._address("poll_endpoint")

    def _address(self, name: str) -> str | None:
        url: str | None = self.cleaned_data[name]
        if url and (words := wrong_endpoint(url)):
            raise forms.ValidationError(words)
        return url

    def clean_new_token(self) -> str:
        token: str = self.cleaned_data["new_token"]
        if token and (not token.isascii() or wrong_secret(token)):
            raise forms.ValidationError(wrong_secret(token) or "A header holds ASCII alone.")
        return token

    def clean(self) -> dict[str, Any] | None:
        data: dict[str, Any] = super().clean() or self.cleaned_data
        if not data.get("jwks_uri") and "jwks_uri" not in self.errors and wrong_endpoint(data.get("transmitter") or ""):
            self.add_error("jwks_uri", "Its keys can be found by its name only if that is an https URL.")
        if data.get("delivery") == "poll":
            self._clean_poll(data)
        elif data.get("new_token"):
            self.add_error("new_token", "It is used only where Muniment polls.")
        return data

    def _clean_poll(self, data: dict[str, Any]) -> None:
        if not data.get("poll_endpoint") and "poll_endpoint" not in self.errors:
            self.add_error("poll_endpoint", "Where is it polled?")
        if data.get("new_token") or "new_token" in self.errors:
            return
        if self.instance.token is None:
            self.add_error("new_token", "The transmitter has to know who asks.")
        elif "poll_endpoint" in self.changed_data:
            self.add_error("new_token", AGAIN)


@admin.register(SignalStream)
class SignalStreamAdmin(PolicyAdmin):
    """Streams; push tokens are shown once, and no token after that."""

    form = StreamForm
    intro = (
        "Transmitters of security events (OpenID Shared Signals). When one reports that a user's sessions were revoked,"
        " the user's older tokens are refused from the next call on, through every client."
    )
    empty = "No stream yet. Add one for an identity provider that reports revoked sessions, by CAEP or RISC events."
    list_display = ["name", "issuer", "state", "delivery", "received", "problem"]
    list_select_related = ["issuer"]
    can_act = [
        Action("disable", "Disable", "None of its events counts any more, so that nobody is signed out by it.",
               "disable", lambda s: s.enabled, danger=True),
        Action("enable", "Enable", "Its events count again.", "enable", lambda s: not s.enabled),
        Action("token", "New push token", "The token that the transmitter has now stops working at once.",
               "renew", lambda s: s.delivery == "push", danger=True),
        Action("keys", "Fetch keys now", "Fetches the transmitter's keys. One that it has withdrawn stops working.",
               "fetch", form=ConfirmForm, in_transaction=False),
    ]  # fmt: skip
    told = ["address", "state", "received", "verified", "polled", "keys_fetched", "problem"]
    by_push = [name for name in told if name != "polled"]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Who may only look has no field for the token."""
        named = ["name", "issuer", "transmitter", "audience", "jwks_uri", "delivery", "poll_endpoint"]
        may = self.has_add_permission(request) if obj is None else self.has_change_permission(request, obj)
        return [*named, *(["new_token"] if may else [])]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """How it goes stands before what can be changed."""
        asked = super().get_fieldsets(request, obj)
        if obj is None:
            return asked
        told = self.by_push if obj.delivery == "push" else self.told
        return [("How it goes", {"fields": told}), *asked]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """What is told; and what records and users were found by."""
        return ["name", "issuer", *self.told] if obj else []

    def save_model(self, request: HttpRequest, obj: SignalStream, form: forms.ModelForm, change: bool) -> None:
        """With the token that its delivery needs, and without the other one. Keys of another transmitter, or from
        another place, are not this one's."""
        if {"transmitter", "jwks_uri"} & set(form.changed_data):
            obj.jwks = obj.keys_fetched_at = obj.keys_attempted_at = None
        obj.error = ""
        unused = "token" if obj.delivery == "push" else "digest"
        if getattr(obj, unused) is not None:
            setattr(obj, unused, None)
            obj.token_set_at = timezone.now()
        if obj.delivery == "push" and obj.digest is None:
            setattr(request, SHOWN, credentials.fresh(obj))
        super().save_model(request, obj, form, change)
        if obj.delivery == "poll" and (token := form.cleaned_data["new_token"]):
            credentials.keep(obj, token)  # under a key that the stream's id names: it is stored by now
            obj.polled_at = None  # at once
            obj.save(update_fields=["token", "token_set_at", "polled_at"])

    def response_add(self, request: HttpRequest, obj: SignalStream, post_url_continue: Any = None) -> HttpResponse:
        """A push token, in the answer to the very request that made it."""
        return self._shown(request, obj) or super().response_add(request, obj, post_url_continue)

    def response_change(self, request: HttpRequest, obj: SignalStream) -> HttpResponse:
        """As above: its delivery may have become push."""
        return self._shown(request, obj) or super().response_change(request, obj)

    def act_view(self, request: HttpRequest, object_id: str, action: str) -> HttpResponse:
        """As always, but that another token is shown at once: a message would keep it."""
        answer = super().act_view(request, object_id, action)
        if not hasattr(request, SHOWN):
            return answer
        return self._shown(request, SignalStream.objects.get(pk=object_id)) or answer

    def _shown(self, request: HttpRequest, obj: SignalStream) -> HttpResponse | None:
        if not hasattr(request, SHOWN):
            return None
        context = {
            **self.admin_site.each_context(request), "title": f"Token for {obj}", "opts": self.opts,
            "secret": getattr(request, SHOWN), "address": credentials.address(obj), "back": self.url_of(obj),
        }  # fmt: skip
        return TemplateResponse(request, "admin/signal_made.html", context, headers={"Cache-Control": "no-store"})

    @admin.display(description="address for the transmitter")
    def address(self, stream: SignalStream) -> str:
        if stream.delivery != "push":
            return "none: it is polled"
        return format_html('<span class="mono">{}</span>', credentials.address(stream))

    @admin.display(description="state", ordering="enabled")
    def state(self, stream: SignalStream) -> str:
        if not stream.enabled:
            return pill("disabled")
        return pill("enabled, with a problem", "flag") if stream.error else pill("enabled")

    @admin.display(description="newest event", ordering="received_at")
    def received(self, stream: SignalStream) -> str:
        return when(stream.received_at, "none yet")

    @admin.display(description="last tested by the transmitter")
    def verified(self, stream: SignalStream) -> str:
        return when(stream.verified_at, "never")

    @admin.display(description="last polled")
    def polled(self, stream: SignalStream) -> str:
        return when(stream.polled_at, "never")

    @admin.display(description="keys fetched")
    def keys_fetched(self, stream: SignalStream) -> str:
        if stream.keys_fetched_at is None:
            return "not yet"
        number = len((stream.jwks or {}).get("keys", []))
        return format_html("{}, {}", when(stream.keys_fetched_at, "never"), f"{number} in use")

    @admin.display(description="problem")
    def problem(self, stream: SignalStream) -> str:
        return stream.error or "none"

    def disable(self, request: HttpRequest, stream: SignalStream, data: dict[str, Any]) -> str:
        """Its events are refused."""
        stream.enabled = False
        stream.save(update_fields=["enabled"])
        return f"{stream} is disabled: its events are refused."

    def enable(self, request: HttpRequest, stream: SignalStream, data: dict[str, Any]) -> str:
        """Back on."""
        stream.enabled = True
        stream.save(update_fields=["enabled"])
        return f"{stream} is enabled."

    def renew(self, request: HttpRequest, stream: SignalStream, data: dict[str, Any]) -> str:
        """Another token; the old one is refused from the next push on."""
        secret = credentials.fresh(stream)
        stream.save(update_fields=["digest", "token_set_at"])
        setattr(request, SHOWN, secret)
        return f"{stream} has a new push token. The old one does not work any more."

    def fetch(self, request: HttpRequest, stream: SignalStream, data: dict[str, Any]) -> str:
        """Fetch now, outside of any transaction."""
        if not self.may(request, "change"):
            raise PermissionDenied
        if keys.fetch(stream) == "failed":
            raise Refused(
                f"The keys could not be fetched, so the old ones stay: {stream.error.removeprefix(keys.FAILED)}"
            )
        return f"The keys of {stream} are fetched."
