"""How staff come in and go: the sign-in page, the way to the identity provider and back, signing in again before what
takes it, changing one's password, signing out. Each is recorded before it is done; one that fails is too, unless it
was never begun."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib.admin.forms import AdminAuthenticationForm, AdminPasswordChangeForm
from django.contrib.auth import BACKEND_SESSION_KEY, get_user_model
from django.contrib.auth.views import LoginView, LogoutView, PasswordChangeView
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse, reverse_lazy
from django.utils.http import urlencode

from audit import recent_sign_in
from audit.admin_base import PlainForm, actor_of
from audit.staff_log import tell
from governance import oidc_flow, sign_in_throttle, staff_oidc
from governance.entering import enter, in_minutes, safe, shown_again
from governance.failed_sign_ins import failures

WRONG = "The name or the password is wrong, or the account is not one of the staff."


def too_many(wait: int) -> ValidationError:
    """What is said instead of looking at a password; `wait` is seconds."""
    words = f"Too many attempts failed. Try again in {in_minutes(wait)}."
    return ValidationError(words, code="throttled", params={"wait": wait})


def wait_of(form: forms.BaseForm) -> int:
    """The seconds that a form says to wait; 0: none."""
    found = [error for errors in form.errors.as_data().values() for error in errors if error.code == "throttled"]
    return int(found[0].params["wait"]) if found and found[0].params else 0


def answered(response: Any, form: forms.BaseForm) -> Any:
    """429 (RFC 6585) where there were too many attempts."""
    if wait := wait_of(form):
        response.status_code = 429
        response.headers["Retry-After"] = str(wait)
    return response


class PasswordForm(AdminAuthenticationForm):
    """Name and password; how often they may be tried is limited."""

    error_messages = {"invalid_login": WRONG, "inactive": WRONG}

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **{"label_suffix": "", **more})

    def clean(self) -> dict[str, Any]:
        """Count the attempt first, then look."""
        name, given = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if not name or not given:
            return self.cleaned_data
        address = sign_in_throttle.address_of(self.request)  # type: ignore[arg-type]
        attempt = sign_in_throttle.attempt(name, address)
        try:
            if attempt.wait:
                raise too_many(attempt.wait)
            found: dict[str, Any] = super().clean()
        except ValidationError:
            about = get_user_model().objects.filter(username=name).values_list("pk", flat=True).first()
            failures.note("password", "throttled" if attempt.wait else "password", about=about, address=address)
            raise
        attempt.succeeded()
        return found


class Door(LoginView):
    """The sign-in page: the way to the identity provider, and, where they are on, local passwords."""

    template_name = "admin/login.html"
    authentication_form = PasswordForm
    next_page: Any = reverse_lazy("admin:index")

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """A password, where there are any."""
        if not settings.MUNIMENT_LOCAL_PASSWORDS:
            raise PermissionDenied
        return super().post(request, *args, **kwargs)

    def get_redirect_url(self, request: HttpRequest | None = None) -> str:
        """Where to go on to."""
        return safe(self.request, self.request.POST.get("next") or self.request.GET.get("next"))

    def form_valid(self, form: Any) -> HttpResponse:
        """Recorded, then done."""
        enter(self.request, form.get_user(), "password")
        return HttpResponseRedirect(self.get_success_url())

    def form_invalid(self, form: Any) -> Any:
        """The page again, with what is wrong."""
        return answered(super().form_invalid(form), form)


class PasswordChangeForm(AdminPasswordChangeForm):
    """The old password is asked as often as on the sign-in page, and no oftener."""

    address = ""

    def clean_old_password(self) -> str:
        """Count the attempt first, then look."""
        attempt = sign_in_throttle.attempt(self.user.get_username(), self.address)
        try:
            if attempt.wait:
                raise too_many(attempt.wait)
            old: str = super().clean_old_password()
        except ValidationError:
            failures.note("password", "change", about=self.user.pk, address=self.address)
            raise
        attempt.succeeded()
        return old


class ChangePassword(PasswordChangeView):
    """One's own local password."""

    form_class = PasswordChangeForm
    success_url: Any = reverse_lazy("admin:password_change_done")

    def get_form_kwargs(self) -> dict[str, Any]:
        """Labels without a colon."""
        return super().get_form_kwargs() | {"label_suffix": ""}

    def get_form(self, form_class: Any = None) -> Any:
        """The form, which knows where it comes from."""
        form: Any = super().get_form(form_class)
        form.address = sign_in_throttle.address_of(self.request)
        return form

    def form_valid(self, form: Any) -> HttpResponse:
        """Recorded with the change."""
        with transaction.atomic():
            tell(*actor_of(self.request), "staff.password", about=f"staff:{form.user.pk}")
            return super().form_valid(form)

    def form_invalid(self, form: Any) -> Any:
        """The page again, with what is wrong."""
        return answered(super().form_invalid(form), form)


class PasswordAgainForm(PlainForm):
    """One's own password."""

    password = forms.CharField(
        strip=False, widget=forms.PasswordInput(attrs={"autocomplete": "current-password", "autofocus": True})
    )

    def __init__(self, request: HttpRequest, *given: Any) -> None:
        self.request = request
        super().__init__(*given)

    def clean_password(self) -> str:
        """Whether it is right; how often that may be asked is limited."""
        user: Any = self.request.user
        address, given = sign_in_throttle.address_of(self.request), str(self.cleaned_data["password"])
        attempt = sign_in_throttle.attempt(user.get_username(), address)
        if attempt.wait or not user.check_password(given):
            failures.note("password", "again", about=user.pk, address=address)
            raise too_many(attempt.wait) if attempt.wait else ValidationError("That is not your password.")
        attempt.succeeded()
        return given


class SignInViews:
    """The pages, for the admin's site."""

    def __init__(self, site: Any) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        return [
            path("sign-in/provider/", oidc_flow.Start.as_view(), name="oidc_start"),
            path("sign-in/provider/callback/", oidc_flow.Callback.as_view(), name="oidc_callback"),
            path("sign-in/again/", self.site.admin_view(self.again), name="sign_in_again"),
        ]

    def door(self, request: HttpRequest, extra: dict[str, Any] | None = None) -> Any:
        """The sign-in page; who is signed in goes on."""
        goal = safe(request, request.GET.get("next"))
        if request.method == "GET" and self.site.has_permission(request):
            return HttpResponseRedirect(goal)
        context = {
            **self.site.each_context(request), "title": "Sign in", "subtitle": None,
            "passwords": settings.MUNIMENT_LOCAL_PASSWORDS,
            "provider": staff_oidc.provider_name() if staff_oidc.is_configured() else "",
            "start": f"{reverse('admin:oidc_start')}?{urlencode({'next': goal})}", "app_path": request.get_full_path(),
            "next": safe(request, request.POST.get("next") or request.GET.get("next")), **(extra or {}),
        }  # fmt: skip
        request.current_app = self.site.name
        return Door.as_view(extra_context=context)(request)

    def leave(self, request: HttpRequest, extra: dict[str, Any] | None = None) -> Any:
        """Sign out: POST, recorded."""
        if request.method == "POST" and request.user.is_authenticated:
            tell(*actor_of(request), "staff.sign_out")
        context = {**self.site.each_context(request), "has_permission": False, "navigation": [], **(extra or {})}
        request.current_app = self.site.name
        return LogoutView.as_view(extra_context=context)(request)

    def change_password(self, request: HttpRequest, extra: dict[str, Any] | None = None) -> Any:
        """One's own password; there is no such page for somebody without one."""
        user: Any = request.user
        if not settings.MUNIMENT_LOCAL_PASSWORDS or not user.has_usable_password():
            raise Http404
        request.current_app = self.site.name
        context = {**self.site.each_context(request), "title": "Change your password", **(extra or {})}
        return ChangePassword.as_view(extra_context=context)(request)

    def again(self, request: HttpRequest) -> HttpResponse:
        """Show again who you are, by the way that you came in."""
        goal = safe(request, request.POST.get("next") or request.GET.get("next"))
        by_provider = request.session.get(BACKEND_SESSION_KEY) == staff_oidc.STAFF_BACKEND
        asked = request.method == "POST" and not by_provider
        form = PasswordAgainForm(request, *([request.POST] if asked else []))
        if asked and form.is_valid():
            shown_again(request, "password")
            return HttpResponseRedirect(goal)
        context = {
            **self.site.each_context(request), "title": "Show again who you are", "form": form, "next": goal,
            "provider": staff_oidc.provider_name() if by_provider else "",
            "start": f"{reverse('admin:oidc_start')}?{urlencode({'next': goal, 'again': '1'})}",
            "minutes": int(recent_sign_in.RECENT.total_seconds() // 60),
        }  # fmt: skip
        return answered(TemplateResponse(request, "admin/sign_in_again.html", context), form)
