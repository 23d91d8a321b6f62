"""The pages of who calls and what they may."""

from clients.admin import callers, grants

__all__ = ["callers", "grants"]
