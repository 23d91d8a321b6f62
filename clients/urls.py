"""Whether two URLs are the same one, whatever way they are spelled (RFC 3986 section 6.2; pure)."""

import re
from typing import Final

_PARTS: Final = re.compile(r"(?i:(https?))://([^/?#]+)([^?#]*)(?:\?[^#]*)?(?:#.*)?")  # RFC 3986 appendix B
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@]+)(?::([0-9]{0,5}))?")
_LEGAL: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/\[\]?#-]|%[0-9A-Fa-f]{2})+")
_ENCODED: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")
_PORTS: Final = {"http": "80", "https": "443"}
MAX_URL: Final = 2048  # characters


def comparable(url: str) -> str | None:
    """An absolute http(s) URL without its query and fragment, normalised by syntax (section 6.2.2) and by scheme
    (section 6.2.3); None for what is no such URL, or names a user. Nothing is resolved or looked up."""
    found = _PARTS.fullmatch(url) if len(url) <= MAX_URL and _LEGAL.fullmatch(url) else None
    if found is None:
        return None
    scheme, path = found[1].lower(), _without_dots(_recoded(found[3]))
    authority = _AUTHORITY.fullmatch(_recoded(found[2]))
    if authority is None:
        return None
    port = (authority[2] or "").lstrip("0")
    if authority[2] and not port:
        return None  # port 0 is none
    host = _lower(authority[1])
    return f"{scheme}://{host}{'' if port in ('', _PORTS[scheme]) else f':{port}'}{path}"


def _recoded(text: str) -> str:
    """Percent-encodings in upper case, and none of what needs none (sections 6.2.2.1 and 6.2.2.2)."""

    def one(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if _UNRESERVED.fullmatch(character) else match[0].upper()

    return _ENCODED.sub(one, text)


def _lower(host: str) -> str:
    """A host in lower case; its percent-encodings stay in upper case."""
    return _ENCODED.sub(lambda match: match[0].upper(), host.lower())


def _without_dots(path: str) -> str:
    """Section 5.2.4 for a path that is empty or begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments and segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
