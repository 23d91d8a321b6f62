"""The clients application: who calls and what they may."""

from django.apps import AppConfig


class ClientsConfig(AppConfig):
    """Nothing to set up."""

    name = "clients"
