"""The pages of what is called. A backend's page is registered in clients/admin, with the issuers that it accepts."""

from tools.admin import keys, scopes, tools
from tools.admin.backends import BackendAdmin
from tools.admin.pills import pill

__all__ = ["BackendAdmin", "keys", "pill", "scopes", "tools"]
