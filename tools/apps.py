"""The tools application: what is called."""

from django.apps import AppConfig


class ToolsConfig(AppConfig):
    """Nothing to set up."""

    name = "tools"
