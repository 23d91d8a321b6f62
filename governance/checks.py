"""System checks: what would be dangerous or broken in production, each with a number (muniment.W001, muniment.E001).

`manage.py check --deploy` runs them; errors of the untagged ones stop every command.
"""

import os
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from audit import anchors, destinations
from audit.streams import delivering
from governance import notifications_sending
from governance.oidc_provider import is_address

# Answered in a second or so; a longer leeway lets a withdrawn token live on.
LONGEST_COOLDOWN = 30
LONGEST_STALE = 7 * 24 * 3600
LONGEST_IDLE = 2 * 3600
LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?/?")


@register(Tags.security)
def mode_is_whole(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """E001: demo mode hands out tokens and logins, and serves loopback only; it takes no public names."""
    # A shell in which a backend runs has the URL of the demo as MUNIMENT_URL, for the SDK.
    url = os.environ.get("MUNIMENT_URL")
    named = os.environ.get("MUNIMENT_HOSTS") or (url and not LOOPBACK.fullmatch(url))
    if settings.MUNIMENT_DEMO and named:
        hint = "Unset MUNIMENT_HOSTS and MUNIMENT_URL, or set MUNIMENT_MODE=production."
        return [Error("Demo mode is on together with a public name.", hint=hint, id="muniment.E001")]
    return []


@register(Tags.security)
def anchors_can_be(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """E006: an anchor that is written wrong would silently anchor nothing."""
    try:
        anchors.configured()
    except anchors.ConfigError as error:
        hint = "docs/configuration.md, Anchors, says how each kind is written."
        return [Error(f"MUNIMENT_ANCHORS, {error}.", hint=hint, id="muniment.E006")]
    return []


@register(Tags.security)
def streams_can_be(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """E011: a stream that is written wrong would bring nothing to the SIEM."""
    try:
        delivering.configured()
    except delivering.ConfigError as error:
        hint = "docs/siem.md says how each kind is written."
        return [Error(f"MUNIMENT_STREAMS, {error}.", hint=hint, id="muniment.E011")]
    return []


@register(Tags.security)
def destinations_can_be(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """E010: a destination that is written wrong would take no export."""
    try:
        destinations.configured()
    except destinations.ConfigError as error:
        hint = "docs/configuration.md, Destinations, says how each kind is written."
        return [Error(f"MUNIMENT_DESTINATIONS, {error}.", hint=hint, id="muniment.E010")]
    return []


@register(Tags.security)
def webhook_can_be(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """E012: a webhook that is written wrong would notify nobody."""
    try:
        notifications_sending.webhook()
    except notifications_sending.ConfigError as error:
        hint = "docs/notifications.md says how it is written."
        return [Error(f"MUNIMENT_NOTIFY_WEBHOOK, {error}.", hint=hint, id="muniment.E012")]
    return []


@register(Tags.security)
def provider_is_whole(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """E007 and E008: staff would meet a sign-in that cannot work, or one that anybody on the way could read."""
    issuer = settings.MUNIMENT_OIDC_ISSUER
    parts = {
        "MUNIMENT_OIDC_ISSUER": issuer, "MUNIMENT_OIDC_CLIENT_ID": settings.MUNIMENT_OIDC_CLIENT_ID,
        "MUNIMENT_OIDC_ROLES (or MUNIMENT_OIDC_ADMIN_GROUP)": settings.MUNIMENT_OIDC_ROLES,
    }  # fmt: skip
    missing = [name for name, value in parts.items() if not value]
    found: list[CheckMessage] = []
    if missing and len(missing) < len(parts):
        hint = f"Set {', '.join(missing)}, or none of them."
        found.append(Error("The identity provider of staff is half configured.", hint=hint, id="muniment.E007"))
    if issuer and not is_address(issuer, loopback_http=settings.MUNIMENT_DEMO):
        hint = "MUNIMENT_OIDC_ISSUER is the issuer's https:// URL, exactly as the provider writes it."
        found.append(Error("The issuer of staff is no https address.", hint=hint, id="muniment.E008"))
    return found


@register(Tags.security, deploy=True)
def staff_can_sign_in(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """E009, W006 and W007: by which way, and for how long."""
    found: list[CheckMessage] = []
    if not settings.MUNIMENT_OIDC_ISSUER and not settings.MUNIMENT_LOCAL_PASSWORDS:
        hint = "Configure the identity provider (MUNIMENT_OIDC_ISSUER and what goes with it)."
        found.append(Error("Nobody can sign in to the admin.", hint=hint, id="muniment.E009"))
    if settings.MUNIMENT_LOCAL_PASSWORDS and not settings.MUNIMENT_DEMO:
        hint = "Local passwords know no second factor and outlive somebody's leaving. Unset MUNIMENT_LOCAL_PASSWORDS."
        found.append(Warning("Staff may sign in with local passwords.", hint=hint, id="muniment.W006"))
    if not 60 <= settings.MUNIMENT_SESSION_IDLE <= LONGEST_IDLE:
        hint = "MUNIMENT_SESSION_IDLE is in seconds; 1800 is usual."
        found.append(Warning("Staff stay signed in for very long or very short.", hint=hint, id="muniment.W007"))
    return found


@register(Tags.security, deploy=True)
def log_is_anchored(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """W005: without an anchor, whoever has the database and the sealer's machine can cut off the log unseen."""
    if settings.MUNIMENT_DEMO or settings.MUNIMENT_ANCHORS:
        return []
    hint = "Name at least one place in MUNIMENT_ANCHORS that the database's administrator cannot write to."
    return [Warning("The log is anchored nowhere.", hint=hint, id="muniment.W005")]


@register(Tags.security, deploy=True)
def served_safely(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """E002 to E004 and W001: where and how it is served."""
    found: list[CheckMessage] = []
    if settings.MUNIMENT_DEMO:
        found.append(Error("Demo mode must not be deployed.", hint="MUNIMENT_MODE=production", id="muniment.E002"))
    if not settings.ALLOWED_HOSTS or "*" in settings.ALLOWED_HOSTS:
        hint = "List the names it is served under in MUNIMENT_HOSTS."
        found.append(Error("ALLOWED_HOSTS is empty or allows every name.", hint=hint, id="muniment.E003"))
    if urlsplit(settings.MUNIMENT_URL).scheme != "https" and not settings.MUNIMENT_DEMO:
        hint = "Set MUNIMENT_URL to the https:// URL that backends and staff use."
        found.append(Error("The platform's own URL is not https.", hint=hint, id="muniment.E004"))
    if not settings.SECURE_PROXY_SSL_HEADER and not settings.MUNIMENT_DEMO:
        hint = "If TLS ends at a proxy that sets X-Forwarded-Proto, set MUNIMENT_PROXY_TLS=1; else ignore this."
        found.append(Warning("No proxy is trusted to say that a request came by TLS.", hint=hint, id="muniment.W001"))
    return found


@register(Tags.security, deploy=True)
def roles_are_apart(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """E005 and W002: web processes serve as a role that owns nothing."""
    default, owner = settings.DATABASES["default"], settings.DATABASES.get("owner")
    found: list[CheckMessage] = []
    if owner and owner["USER"] == default["USER"]:
        hint = "Give DATABASE_URL a role that owns no tables; rights are granted to it by `manage.py migrate`."
        found.append(Error("The serving role owns the tables.", hint=hint, id="muniment.E005"))
    if owner and settings.MUNIMENT_PROCESS == "web":
        hint = "Unset DATABASE_OWNER_URL for web processes."
        found.append(Warning("A web process has the owner's database URL.", hint=hint, id="muniment.W002"))
    return found


@register(Tags.security, deploy=True)
def bounds_are_sane(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """W003 and W004: settings that keep a withdrawn key or a flood alive for long."""
    found: list[CheckMessage] = []
    if settings.MUNIMENT_JWKS_MAX_STALE > LONGEST_STALE:
        hint = "MUNIMENT_JWKS_MAX_STALE is in seconds; a day is usual."
        found.append(Warning("Key sets may be used for over a week without a fetch.", hint=hint, id="muniment.W003"))
    if settings.MUNIMENT_JWKS_COOLDOWN > LONGEST_COOLDOWN:
        hint = "MUNIMENT_JWKS_COOLDOWN is in seconds; 30 is usual."
        found.append(Warning("A rotated key is seen only after long.", hint=hint, id="muniment.W004"))
    return found
