"""The platform's paths and a view that does nothing: what verify is compared with, on the same server."""

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from governance.urls import urlpatterns as platform

ANSWER = b'{"decision":"allow"}'


@csrf_exempt
def bare(request: HttpRequest) -> HttpResponse:
    """A Django view that returns a constant."""
    return HttpResponse(ANSWER, content_type="application/json")


urlpatterns = [path("bare", bare), *platform]
