"""Django REST framework: a tool as the permission of a view, beside `muniment.adapters.django.MunimentMiddleware`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from muniment.adapters.django import configured_guard
from muniment.calls import Caller
from muniment.guard import Muniment
from muniment.metadata import challenge
from muniment.tools import Access, FailMode, Resource, Tool, ToolCall, tool_of

if TYPE_CHECKING:
    from rest_framework.views import APIView  # while it is imported, it imports the authentication of the settings


class User:
    """The verified caller as a request's `user`: no row of a database, no member of staff, with no permission."""

    is_authenticated = is_active = True
    is_anonymous = is_staff = is_superuser = False

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.uid = self.pk = self.id = self.username = caller.uid

    def __str__(self) -> str:
        return self.uid

    def get_username(self) -> str:
        """The uid."""
        return self.uid

    def has_perm(self, permission: str, obj: object = None) -> bool:
        """None: what a caller may is decided for each tool."""
        return False

    def has_perms(self, permissions: Sequence[str], obj: object = None) -> bool:
        """None."""
        return False

    def has_module_perms(self, label: str) -> bool:
        """None."""
        return False


class Required(BasePermission):
    """The permission to call one tool; made by `requires`."""

    guard: Muniment
    tool: Tool

    def has_permission(self, request: Request, view: APIView) -> bool:
        """True, once for each request, after the platform has allowed the call; the handler then runs as the caller.
        Raises Denied, Unavailable, Throttled, Refused or Misconfigured, never answers False to a real request: DRF
        would make of it an answer without the challenge."""
        if request.method != request._request.method:
            return False  # the browsable API asks which forms to draw: nothing is called
        self.begin(request, view)
        return True

    def begin(self, request: Request, view: APIView) -> ToolCall:
        """The call of this request to this view, verified when it is asked for first."""
        begun: dict[str, tuple[APIView, ToolCall]] = request._request.__dict__.setdefault("_muniment_calls", {})
        of, call = begun.get(self.tool.name, (None, None))
        if call is None or of is not view:
            call = self._begin(request, view)
            begun[self.tool.name] = view, call
        return call

    def _begin(self, request: Request, view: APIView) -> ToolCall:
        name = (request.method or "").lower()
        handler = getattr(view, name, None)
        if name not in view.http_method_names or handler is None:
            raise MethodNotAllowed(request.method or "")
        call = self.guard.begin(self.tool, view.kwargs)
        # DRF looks the handler up on the view of this request, after its permissions.
        setattr(view, name, functools.partial(_called, call, handler))
        if call.caller is not None:
            request.user, request.auth = cast(Any, User(call.caller)), call.caller
        return call


def _called(call: ToolCall, handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with call:
        return handler(*args, **kwargs)


def requires(
    guard: Muniment,
    name: str,
    *,
    scopes: str | Sequence[str] = (),
    access: Access | None = None,
    fail: FailMode = "closed",
    description: str = "",
    resource: Callable[..., Resource | None] | None = None,
    assertion: str | None = None,
) -> type[Required]:
    """A permission class, of a view or of an action of a view set:
    `permission_classes = [requires(guard, "memory.recall", scopes="memory:read")]`.

    The arguments are those of `guard.tool`; `resource` is given the parameters of the URL. One that is kept in a
    variable can be that of several views. Raises Misconfigured.
    """
    about: dict[str, Any] = {"description": description, "resource": resource, "assertion": assertion}
    tool = tool_of(name, scopes, access, fail=fail, **about)
    guard.add(tool)
    return type("Required", (Required,), {"guard": guard, "tool": tool})


class MunimentAuthentication(BaseAuthentication):
    """`request.user` is the verified caller of the tool that the view requires, already for throttles and other
    permissions. A view that requires none has an anonymous user: a token says who somebody is only to the platform."""

    def authenticate(self, request: Request) -> tuple[User, Caller] | None:
        """The user and the caller; None where the view requires no tool. Raises what `Required` raises."""
        view: Any = (request.parser_context or {}).get("view")
        for permission in view.get_permissions() if view else ():
            if isinstance(permission, Required) and request.method == request._request.method:
                caller = permission.begin(request, view).caller
                return (User(caller), caller) if caller else None
        return None

    def authenticate_header(self, request: Request) -> str:
        """The challenge of other permissions' 401."""
        return challenge(None, configured_guard())
