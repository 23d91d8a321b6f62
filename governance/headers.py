"""The headers with which every page is served: what a browser may load, may do and may keep of it."""

from typing import Any

from csp.middleware import CSPMiddleware
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from governance.shortcut import PREFIXES

# What a page of ours needs of a browser's powers: to put an id on the clipboard.
ALLOWED = "clipboard-write=(self)"
DENIED = (
    "accelerometer", "autoplay", "camera", "clipboard-read", "display-capture", "encrypted-media", "fullscreen",
    "geolocation", "gyroscope", "hid", "identity-credentials-get", "idle-detection", "magnetometer", "microphone",
    "midi", "otp-credentials", "payment", "picture-in-picture", "publickey-credentials-get", "screen-wake-lock",
    "serial", "usb", "xr-spatial-tracking",
)  # fmt: skip
PERMISSIONS = ", ".join([ALLOWED, *(f"{power}=()" for power in DENIED)])
PRIVATE = "/admin/"


class PageHeaders(CSPMiddleware):
    """Outermost middleware, so that redirects, errors and static files have them too: Content-Security-Policy (W3C
    CSP Level 3), Permissions-Policy, and for the admin Cache-Control: no-store (RFC 9111 section 5.2.2.5), since its
    pages hold evidence that must not be found in a browser's cache once its viewer has signed out. Backends have no
    browser: what is theirs passes by."""

    def __call__(self, request: HttpRequest) -> Any:
        """Answer a call of the API as it is, and everything else with the headers."""
        if request.path_info.startswith(PREFIXES):
            return self.get_response(request)
        return super().__call__(request)

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Add what is not said already."""
        answer = super().process_response(request, response)
        answer.headers.setdefault("Permissions-Policy", PERMISSIONS)
        if request.path_info.startswith(PRIVATE):
            answer.headers.setdefault("Cache-Control", "no-store, private")
        return answer
