"""Every path that is served."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView

from governance.api import VerifyBatchView, VerifyView
from governance.backend_api import KeysView, ToolsView
from governance.health import livez, readyz
from governance.outcomes import OutcomeView

urlpatterns = [
    path("v1/verify", VerifyView.as_view()),
    path("v1/verify/batch", VerifyBatchView.as_view()),
    path("v1/records/<uuid:record>/outcome", OutcomeView.as_view()),
    path("v1/tools", ToolsView.as_view()),
    path("v1/keys", KeysView.as_view()),
    path("v1/schema", SpectacularAPIView.as_view(), name="schema"),
    path("livez", livez),
    path("readyz", readyz),
    path("admin/", admin.site.urls),
    path("", RedirectView.as_view(url="/admin/")),
]
if settings.MUNIMENT_DEMO:
    urlpatterns.append(path("demo-issuer/", include("governance.demo_issuer")))

handler404 = "governance.problems.not_found"
handler500 = "governance.problems.server_error"
