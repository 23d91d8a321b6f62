"""The pages of who calls and what they may."""

from clients.admin import callers, grants, requests, reviews

__all__ = ["callers", "grants", "requests", "reviews"]
