"""What is published about clients whose id is a URL, on the pages of staff: shown as unverified, approved in one step
with a reason, and its logo, served from here."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_http_methods, require_safe

from audit.admin_base import ReasonForm
from clients import metadata
from clients.metadata import MetadataError
from clients.models import ClientMetadata, OAuthClientId


class PublishedViews:
    """The pages, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap, both = self.site.admin_view, require_http_methods(["GET", "HEAD", "POST"])
        base = "clients/client/published/<int:number>"
        return [
            path(f"{base}/logo/", wrap(require_safe(self.logo)), name="client_published_logo"),
            path(f"{base}/approve/", wrap(both(self.approve)), name="client_published_approve"),
        ]

    def logo(self, request: HttpRequest, number: int) -> HttpResponse:
        """The picture, of the type that its bytes say; a browser takes it for nothing else, and runs nothing in it."""
        if not request.user.has_perm("clients.view_client"):
            raise PermissionDenied
        row = ClientMetadata.objects.filter(pk=number).exclude(logo=None).first()
        if row is None or row.logo_type not in ClientMetadata.LOGO_TYPES:
            raise Http404
        return HttpResponse(
            bytes(row.logo or b""),
            content_type=row.logo_type,
            headers={
                "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": "sandbox; default-src 'none'",
                "Content-Disposition": "inline",
                "Cache-Control": "no-store, private",
            },
        )

    def approve(self, request: HttpRequest, number: int) -> HttpResponse:
        """GET asks, POST does."""
        if not request.user.has_perm("clients.change_client"):
            raise PermissionDenied
        form = ReasonForm(request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid():
            digest, reason = request.POST.get("definition", ""), form.cleaned_data["reason"]
            try:
                done = metadata.approve(number, digest, user=request.user, reason=reason)
                messages.success(request, f"What {done.host} publishes is approved as it is now.")
                return HttpResponseRedirect(_page(done.url))
            except MetadataError as error:
                form.add_error(None, str(error))
        row = ClientMetadata.objects.defer("logo").filter(pk=number).exclude(digest="").first()
        if row is None:
            raise Http404
        context = {
            **self.site.each_context(request), "title": f"Approve what {row.host} publishes", "one": row,
            "form": form, "back": _page(row.url),
        }  # fmt: skip
        return TemplateResponse(request, "admin/client_published_approve.html", context)


def _page(url: str) -> str:
    """Where the client id is decided on: its client's page, or the inbox."""
    known = OAuthClientId.objects.filter(oauth_id=url).order_by("pk").first()
    return reverse("admin:clients_client_change", args=[known.client_id]) if known else reverse("admin:inbox")


class WithPublished(admin.ModelAdmin):
    """For the admin of clients: its page shows what is published about its ids."""

    def render_change_form(
        self, request: HttpRequest, context: Any, add: bool = False, change: bool = False, form_url: str = "",
        obj: Any = None,
    ) -> Any:  # fmt: skip
        """With what is known of the ids that are URLs."""
        ids = obj.oauth_client_ids.values_list("oauth_id", flat=True) if obj else []
        context["published"] = list(metadata.of(ids).values())
        return super().render_change_form(request, context, add, change, form_url, obj)
