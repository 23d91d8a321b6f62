"""The pages of who calls and what they may."""

from clients.admin import callers, grants, limits, requests, reviews, scim, signals

__all__ = ["callers", "grants", "limits", "requests", "reviews", "scim", "signals"]
