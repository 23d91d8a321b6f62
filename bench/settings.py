"""The platform's settings, with the bare view beside the real ones."""

from governance.settings import *  # noqa: F403

ROOT_URLCONF = "bench.urls"

# Django's test client, with which one request is profiled, calls itself so.
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
