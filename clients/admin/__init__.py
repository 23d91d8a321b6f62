"""The pages of who calls and what they may."""

from clients.admin import callers, grants, requests

__all__ = ["callers", "grants", "requests"]
