"""The platform's WSGI application with the bench's paths."""

from governance.wsgi import application

__all__ = ["application"]
