"""A Django project of its own, guarded, for the tests of the adapter: `django_backend.py URL KEY` serves it by WSGI and
by ASGI, prints both URLs, and ends when its standard input does."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path
from psycopg.conninfo import conninfo_to_dict

from muniment import Agent, Muniment, current_caller, touched

guard = Muniment(
    *sys.argv[1:3], timeout=30, resource="https://inner.example/api", authorization_servers=["https://id.example/"]
)  # fmt: skip


def agent_of(request: HttpRequest) -> Agent | None:
    """The agent that a trusted orchestrator names."""
    named = request.headers.get("X-Agent")
    return Agent("subagent", (named,)) if named else None


def database() -> dict[str, Any]:
    """The tests' database, as its restricted role."""
    parts = conninfo_to_dict(os.environ["DATABASE_URL"])
    return {
        "ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts["user"],
        "PASSWORD": parts["password"], "HOST": parts["host"], "PORT": parts.get("port", ""),
    }  # fmt: skip


settings.configure(
    SECRET_KEY="of a test",
    DEBUG=False,
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    DATABASES={"default": database()},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "rest_framework"],
    MIDDLEWARE=[
        "muniment.adapters.django.MunimentMiddleware",
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    REST_FRAMEWORK={"DEFAULT_AUTHENTICATION_CLASSES": ["muniment.adapters.drf.MunimentAuthentication"]},
    MUNIMENT_GUARD=guard,
    MUNIMENT_AGENT=f"{__name__}.agent_of",
    MUNIMENT_NAME="Inner",
    MUNIMENT_TRUSTED_PROXIES=["127.0.0.1"],
)
django.setup()

from django.db import connection  # noqa: E402
from rest_framework import permissions, routers, throttling, viewsets  # noqa: E402
from rest_framework.decorators import action, api_view, permission_classes  # noqa: E402
from rest_framework.request import Request  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402

from muniment.adapters.drf import requires  # noqa: E402
from muniment.calls import incoming  # noqa: E402


def who() -> str | None:
    """The user who is verified here."""
    caller = current_caller()
    return caller.sub if caller else None


@guard.tool("memory.recall", scopes="memory:read")
def recalled(request: HttpRequest) -> JsonResponse:
    """Find memories."""
    time.sleep(float(request.GET.get("pause", 0)))
    return JsonResponse({"user": who(), "request": dict(incoming().request)})


@guard.tool("memory.recall.async", scopes="memory:read")
async def recalled_async(request: HttpRequest) -> JsonResponse:
    """Find memories, in an event loop."""
    await asyncio.sleep(float(request.GET.get("pause", 0)))
    return JsonResponse({"user": who()})


@guard.tool("memory.capture", scopes="memory:write")
def capture() -> None:
    """Keep a memory."""


def captured(request: HttpRequest) -> JsonResponse:
    """A view that calls a tool."""
    capture()
    return JsonResponse({})


def streamed(request: HttpRequest) -> HttpResponseBase:
    """What is streamed runs when the view is over."""
    recalled(request)

    def parts() -> Iterator[str]:
        yield f"{who()} {incoming().token}"

    return StreamingHttpResponse(parts())


@guard.tool("memory.count", scopes="memory:read")
def counted(request: HttpRequest) -> JsonResponse:
    """Asks the database who it is asked by."""
    with guard.as_caller(connection), connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('muniment.uid', true)")
        [uid] = cursor.fetchone()
    caller = current_caller()
    return JsonResponse({"same": caller is not None and uid == caller.uid})


def broken(request: HttpRequest) -> JsonResponse:
    """An error of its own."""
    raise RuntimeError("of the application")


class ForEach(throttling.SimpleRateThrottle):
    """Names whom it would throttle."""

    rate = "1000/second"

    def get_cache_key(self, request: Request, view: APIView) -> None:
        """Throttles nobody."""
        request._request.META["throttled"] = str(request.user)


READ = requires(guard, "memory.view", scopes="memory:read", resource=lambda memory_id="all": ("memory", memory_id))


class Memories(APIView):
    """A view with a permission."""

    permission_classes = [READ]
    throttle_classes = [ForEach]

    def get(self, request: Request, memory_id: str) -> Response:
        """Says who asks, by all that knows it."""
        touched("memory", memory_id)
        user: Any = request.user
        caller: Any = request.auth
        return Response(
            {"user": who(), "uid": user.uid, "in": user.is_authenticated, "staff": user.is_staff,
             "same": user.uid == caller.uid == request._request.META["throttled"]}
        )  # fmt: skip

    def put(self, request: Request, memory_id: str) -> Response:
        """Fails."""
        raise ValueError("of the view")


class Actions(viewsets.ViewSet):
    """Permissions of actions, and the decorator on one."""

    @action(detail=False, permission_classes=[requires(guard, "memory.forget", scopes="memory:write")])
    def forget(self, request: Request) -> Response:
        """Not granted."""
        return Response({})

    @action(detail=False, permission_classes=[permissions.IsAuthenticated])
    def other(self, request: Request) -> Response:
        """Of no tool: nobody is verified."""
        return Response({})

    @guard.tool("memory.list", scopes="memory:read")
    def list(self, request: Request) -> Response:
        """By the decorator."""
        return Response({"user": who(), "anonymous": request.user.is_anonymous})


@api_view(["GET"])
@permission_classes([READ])
def function(request: Request) -> Response:
    """A function as a view."""
    return Response({"user": who(), "uid": str(request.user)})


router = routers.SimpleRouter()
router.register("actions", Actions, basename="actions")
urlpatterns = [
    path("recall", recalled), path("recall/async", recalled_async), path("capture", captured), path("stream", streamed),
    path("count", counted), path("broken", broken), path("memories/<memory_id>", Memories.as_view()),
    path("function", function), *router.urls,
]  # fmt: skip


def main() -> None:
    """Serve until standard input ends."""
    from django.core.asgi import get_asgi_application
    from django.core.wsgi import get_wsgi_application

    from tests.served import asgi, served

    with served(get_wsgi_application()) as wsgi_url, asgi(get_asgi_application(), lifespan="off") as asgi_url:
        sys.stdout.write(f"{wsgi_url} {asgi_url}\n")
        sys.stdout.flush()
        sys.stdin.read()
    guard.close()


if __name__ == "__main__":
    main()
