"""The admin pages of governance's own models."""

from governance import roles_admin, schedules_admin, staff_admin, staff_keys_admin

__all__ = ["roles_admin", "schedules_admin", "staff_admin", "staff_keys_admin"]
