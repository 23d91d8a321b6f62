"""States in colour and words."""

from django.utils.html import format_html

PILLS = {"active": "allow", "enabled": "allow", "pending": "flag", "suspended": "deny", "disabled": "deny"}


def pill(words: str, kind: str | None = None) -> str:
    """A state in colour and words."""
    return format_html('<span class="pill {}">{}</span>', kind or PILLS.get(words, "plain"), words.capitalize())
