"""The platform's settings, with the bare view beside the real ones."""

from governance.settings import *  # noqa: F403

ROOT_URLCONF = "bench.urls"
