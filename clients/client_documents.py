"""OAuth client ids that are URLs: which URLs may be one, and what the document there says of the client (OAuth Client
ID Metadata Document, draft-ietf-oauth-client-id-metadata-document). Nothing of it is believed: it is what the host
says."""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from clients.fetching import FetchError, get, get_json

MAX_URL: Final = 255  # characters, as of every client id
MAX_NAME: Final = 120
MAX_URI: Final = 500
MAX_DOCUMENT: Final = 64 * 1024  # bytes
MAX_LOGO: Final = 64 * 1024
TIMEOUT: Final = 8.0  # seconds for the document and the logo together

# Told by their first bytes, whatever the server says. No SVG, which is a document that may hold a program.
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_GIFS: Final = (b"GIF87a", b"GIF89a")
_LOGOS: Final = "image/png, image/jpeg, image/webp, image/gif"


@dataclass(frozen=True, slots=True)
class Published:
    """What a client's document says. `note` is why there is no logo, where there should be one; `logo_unreachable` that
    it could not be had this time."""

    name: str
    uri: str
    logo: bytes | None = None
    logo_type: str = ""
    note: str = ""
    logo_unreachable: bool = False


def digest_of(name: str, uri: str, logo_type: str, logo: bytes | None) -> str:
    """SHA-256 of all that staff are shown of a client, in hex: what they approve."""
    picture = hashlib.sha256(logo).hexdigest() if logo else ""
    return hashlib.sha256(json.dumps([name, uri, logo_type, picture]).encode()).hexdigest()


def problem(url: str, loopback_http: bool = False) -> str | None:
    """Why a client id is no URL of a document (section 3 of the draft), in words; None where it is one.
    `loopback_http`, in development, also admits http."""
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return f"it has characters that a URL may not have, or more than {MAX_URL}"
    if not url.startswith(("https://", "http://") if loopback_http else "https://"):
        return "it is not https"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "it cannot be read"
    if "@" in parts.netloc or "#" in url:
        return "it has a user name or a fragment"
    if not parts.hostname or not parts.path:
        return "it has no host or no path"
    if not {".", ".."}.isdisjoint(unquote(parts.path).split("/")):
        return "its path has dot segments"
    return None


def fetch(url: str, loopback_http: bool = False) -> Published:
    """Fetch what is published about the client whose id the URL is. No redirect is followed, no address is connected to
    that is not public (`fetching`). Raises FetchError, in words that quote nothing of the answer."""
    if words := problem(url, loopback_http):
        raise FetchError(f"the client id is no URL of a document: {words}")
    deadline = time.monotonic() + TIMEOUT
    document = get_json(url, allow_loopback_http=loopback_http, timeout=TIMEOUT, max_bytes=MAX_DOCUMENT)
    if document.get("client_id") != url:
        raise FetchError("the document is of another client: its client_id is not the URL that it is at")
    name, uri = _name(document.get("client_name")), _uri(document.get("client_uri"))
    logo_uri = document.get("logo_uri")
    if logo_uri is None:
        return Published(name, uri)
    if not isinstance(logo_uri, str) or not _same_origin(logo_uri, url):
        return Published(name, uri, note="the logo is not on the host of the client id, so it is not fetched")
    try:
        left = deadline - time.monotonic()
        found = get(logo_uri, _LOGOS, allow_loopback_http=loopback_http, timeout=left, max_bytes=MAX_LOGO).body
    except FetchError as error:
        return Published(name, uri, note=f"the logo: {error}", logo_unreachable=True)
    kind = logo_type(found)
    if kind is None:
        return Published(name, uri, note="the logo is no PNG, JPEG, WebP or GIF, so it is not shown")
    return Published(name, uri, found, kind)


def logo_type(content: bytes) -> str | None:
    """The media type of a picture by its first bytes; None where it is none that is shown."""
    if content.startswith(_PNG):
        return "image/png"
    if content.startswith(_JPEG):
        return "image/jpeg"
    if content.startswith(_GIFS):
        return "image/gif"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "image/webp"
    return None


def _name(value: Any) -> str:
    if value is None:
        return ""
    # isprintable() also excludes what turns the direction of a text, which could make one name look like another.
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > MAX_NAME:
        raise FetchError(f"client_name is not a printable text of 1 to {MAX_NAME} characters")
    return value.strip()


def _uri(value: Any) -> str:
    """The home page, as a text that is shown; what is no https URL is left out."""
    if not isinstance(value, str) or len(value) > MAX_URI or not value.isascii() or not value.isprintable():
        return ""
    return value if value.startswith("https://") else ""


def _same_origin(one: str, other: str) -> bool:
    """Scheme, host and port (RFC 6454), so that “as published by” is true of the logo too."""
    try:
        return _origin(urlsplit(one)) == _origin(urlsplit(other))
    except ValueError:
        return False


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
