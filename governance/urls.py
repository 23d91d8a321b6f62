"""Every path that is served."""

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.urls import URLPattern, include, path, re_path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView

from governance.api import VerifyBatchView, VerifyView
from governance.authzen import (
    ActionSearchView,
    EvaluationsView,
    EvaluationView,
    MetadataView,
    ResourceSearchView,
    SubjectSearchView,
)
from governance.backend_api import KeysView, ToolsView
from governance.forward_auth import ForwardAuthView
from governance.health import livez, readyz
from governance.introspection import IntrospectView
from governance.log_api import CheckpointView, ConsistencyView, InclusionView, TileView
from governance.metrics_view import scrape
from governance.outcomes import OutcomeView
from governance.records_api import RecordsView, RecordView
from governance.reference import reference
from governance.scim_api import scim
from governance.signals_api import LogoutView, SignalsView
from governance.ungoverned import UngovernedView


def log(**initial: Any) -> tuple[list[URLPattern], None, None]:
    """What each log has for everybody: the newest one below v1/log/, any one below v1/log/<number>/."""
    found = [
        path("checkpoint", CheckpointView.as_view(**initial)),
        path("tile/<path:tile>", TileView.as_view(**initial)),
        path("proof/consistency", ConsistencyView.as_view(**initial)),
    ]
    return found, None, None


urlpatterns = [
    path("v1/verify", VerifyView.as_view()),
    path("v1/verify/batch", VerifyBatchView.as_view()),
    path("v1/ungoverned", UngovernedView.as_view()),
    path("v1/introspect", IntrospectView.as_view()),
    path("v1/records", RecordsView.as_view(), name="api_records"),
    path("v1/records/<uuid:record>", RecordView.as_view()),
    path("v1/records/<uuid:record>/outcome", OutcomeView.as_view()),
    path("v1/tools", ToolsView.as_view()),
    path("v1/signals/logout", LogoutView.as_view()),
    path("v1/signals/<slug:stream>", SignalsView.as_view()),
    path("v1/forward-auth", ForwardAuthView.as_view()),
    re_path("^v1/forward-auth/", ForwardAuthView.as_view(schema=None)),  # Envoy: the original path follows
    path("v1/keys", KeysView.as_view()),
    path("v1/log/", log()),
    path("v1/log/<int:number>/", log(schema=None)),  # described by governance.schema, from the ones above
    path("v1/log/proof/inclusion", InclusionView.as_view()),
    path("access/v1/evaluation", EvaluationView.as_view()),
    path("access/v1/evaluations", EvaluationsView.as_view()),
    path("access/v1/search/subject", SubjectSearchView.as_view()),
    path("access/v1/search/resource", ResourceSearchView.as_view()),
    path("access/v1/search/action", ActionSearchView.as_view()),
    path(".well-known/authzen-configuration", MetadataView.as_view()),
    # SCIM describes itself: /Schemas and /ServiceProviderConfig (docs/scim.md).
    path("scim/v2/<str:connection>/<path:rest>", scim),
    path("scim/v2/<str:connection>/", scim),
    path("scim/v2/<str:connection>", scim),
    path("v1/schema", SpectacularAPIView.as_view(), name="schema"),
    path("reference", reference, name="reference"),
    path("livez", livez),
    path("readyz", readyz),
    path("metrics", scrape),
    path("admin/", admin.site.urls),
    path("", RedirectView.as_view(url="/admin/")),
]
if settings.MUNIMENT_DEMO:
    urlpatterns.append(path("", include("governance.demo_urls")))

handler400 = "governance.error_pages.bad_request"
handler403 = "governance.error_pages.denied"
handler404 = "governance.error_pages.not_found"
handler500 = "governance.error_pages.server_error"
