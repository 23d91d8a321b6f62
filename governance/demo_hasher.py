"""Passwords of the demo's staff: worthless where the demo is not."""

from django.contrib.auth.hashers import PBKDF2PasswordHasher


class DemoPasswordHasher(PBKDF2PasswordHasher):
    """PBKDF2 under a name that production does not know, so that a demo login, whose password is printed for
    everybody, cannot be used when its database is later served in production."""

    algorithm = "demo_pbkdf2_sha256"
