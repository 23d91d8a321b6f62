"""Staff who sign in at the identity provider: mozilla-django-oidc's authorization code flow, made strict.

By itself it takes a token of another issuer, for another client, or without `exp`; finds people by e-mail address;
waits for ever; and ends in a 500 where the provider's keys or tokens are odd. Here the token is checked by
`governance.id_token`, the provider is asked by `governance.oidc_provider`, people are found by `iss` and `sub` alone,
and whatever fails is a Refused, which is told on the sign-in page."""

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.http import HttpRequest
from django.utils import timezone
from mozilla_django_oidc.auth import OIDCAuthenticationBackend

from governance import id_token, role_mapping, staff_roles, staff_tenants
from governance.confined import ConfinedBackend
from governance.id_token import Person
from governance.models import StaffIdentity
from governance.oidc_provider import ProviderError, provider

MAX_CODE: Final = 4096  # characters
CALLBACK: Final = "admin:oidc_callback"
STAFF_BACKEND: Final = "governance.staff_oidc.StaffBackend"  # as sessions name it

# What is said on the sign-in page. Which check failed is in the process's own log, beside the reference.
REASONS: Final = {
    "provider": "The identity provider could not be reached, or gave an answer that is of no use. Try again in a"
    " moment.",
    "token": "The identity provider's answer could not be verified, so nobody is signed in.",
    "state": "This sign-in was begun in another browser, or too long ago. Begin again.",
    "denied": "The identity provider did not sign you in.",
    "no_role": "None of your groups at the identity provider has a role here. Ask an administrator for one.",
    "no_tenant": "The identity provider does not say which tenants are yours. Ask whoever runs it.",
    "inactive": "Your account here is deactivated. Ask an administrator.",
    "other": "That was somebody else. Show again who you are, as the person who is signed in.",
}


class Refused(Exception):
    """Nobody is signed in. `reason` is one of REASONS; `detail` is for the process's log and holds no secret, no
    token and nobody's name; `about` is the number of the account that it concerns, where one is known."""

    def __init__(self, reason: str, detail: str, about: int | None = None) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.about = reason, detail, about


@dataclass(frozen=True, slots=True)
class Again:
    """Somebody who is signed in shows again who they are: the same account, and after `since` (POSIX seconds)."""

    account: int
    since: float


def is_configured() -> bool:
    """Whether staff can sign in at an identity provider: all that it takes is set."""
    needed = (settings.MUNIMENT_OIDC_ISSUER, settings.MUNIMENT_OIDC_CLIENT_ID, settings.MUNIMENT_OIDC_CLIENT_SECRET)
    return all(needed) and bool(settings.MUNIMENT_OIDC_ROLES)


def provider_name() -> str:
    """What the provider is called on the sign-in page: as configured, else its host."""
    return settings.MUNIMENT_OIDC_NAME or urlsplit(settings.MUNIMENT_OIDC_ISSUER).hostname or "the identity provider"


class StaffBackend(ConfinedBackend, OIDCAuthenticationBackend):
    """One sign-in. Permissions are Django's own, by the account's roles, as far as confinement to tenants leaves
    them."""

    def __init__(self) -> None:
        # Not the parent's, which wants every address in the settings; ours are found by discovery, when needed.
        self.UserModel = get_user_model()
        self.OIDC_RP_CLIENT_ID = settings.MUNIMENT_OIDC_CLIENT_ID
        self.OIDC_RP_CLIENT_SECRET = settings.MUNIMENT_OIDC_CLIENT_SECRET
        self.again: Again | None = None

    @staticmethod
    def get_settings(attr: str, *default: Any) -> Any:
        """What the parent asks of the settings: nothing there can loosen what is fixed here."""
        if attr == "OIDC_AUTHENTICATION_CALLBACK_URL":
            return CALLBACK
        return default[0] if default else None

    def authenticate(  # type: ignore[override]  # Django calls those backends alone whose signature fits
        self, request: HttpRequest | None, *, nonce: str, code_verifier: str, again: Again | None = None
    ) -> User | None:
        """The member of staff whom the provider's answer in `request.GET` establishes. Raises Refused."""
        code = "" if request is None else request.GET.get("code", "")
        if not 0 < len(code) <= MAX_CODE or not code.isascii() or not code.isprintable():
            raise Refused("token", "there is no code, or one that cannot be")
        self.again = again
        found: Any = super().authenticate(request, nonce=nonce, code_verifier=code_verifier)
        if found is None:
            raise Refused("token", "the callback is incomplete")
        return found

    def get_token(self, payload: dict[str, str]) -> dict[str, Any]:
        """Exchange the code. Raises Refused."""
        form = {name: value for name, value in payload.items() if name not in ("client_id", "client_secret")}
        try:
            return provider(settings.MUNIMENT_OIDC_ISSUER).exchange(
                form, settings.MUNIMENT_OIDC_CLIENT_ID, settings.MUNIMENT_OIDC_CLIENT_SECRET
            )
        except ProviderError as error:
            raise Refused("provider", str(error)) from None

    def verify_token(self, token: object, **more: Any) -> Person:
        """Whom the ID token names, by the provider's keys of now. Raises Refused."""
        expected = id_token.Expected(
            settings.MUNIMENT_OIDC_ISSUER, settings.MUNIMENT_OIDC_CLIENT_ID, more["nonce"],
            settings.MUNIMENT_OIDC_GROUPS_CLAIM, self.again.since if self.again else None,
            settings.MUNIMENT_OIDC_TENANTS_CLAIM,
        )  # fmt: skip
        issuer = provider(settings.MUNIMENT_OIDC_ISSUER)
        try:
            try:
                return id_token.read(token, issuer.keys(), expected, time.time())
            except id_token.UnknownKey:
                return id_token.read(token, issuer.keys(anew=True), expected, time.time())
        except id_token.BadToken as error:
            raise Refused("token", str(error)) from None
        except ProviderError as error:
            raise Refused("provider", str(error)) from None

    def store_tokens(self, access_token: object, token: object) -> None:
        """They are not kept: nothing is done in the person's name at the provider."""

    def get_userinfo(self, access_token: object, token: object, payload: object) -> dict[str, Any]:
        """Not asked: what the signed token does not say is not believed."""
        return {}

    def get_or_create_user(self, access_token: object, token: object, payload: Person) -> User:
        """The account of `iss` and `sub`, with the roles of the groups of now. Raises Refused."""
        return admit(payload, self.again)

    def get_user(self, user_id: int) -> User | None:
        """The account of a session that began at the provider, while it is active and the provider is configured."""
        found: Any = ModelBackend.get_user(self, user_id) if is_configured() else None
        return found


def admit(person: Person, again: Again | None = None) -> User:
    """The account of somebody whom the provider has established, made where there is none. Its roles become exactly
    those of their groups, its tenants those of their token where that is to say them, and each change is recorded.
    Raises Refused for somebody without a role or a tenant, for an account that is deactivated, and for another one than
    is to show itself again."""
    roles = role_mapping.roles_of(person.groups, settings.MUNIMENT_OIDC_ROLES)
    why = "no_role", "none of the groups has a role"
    if person.tenants is not None and not person.tenants:  # and so without a role: with no tenant they would see all
        roles, why = frozenset(), ("no_tenant", "the token names no tenant")
    with transaction.atomic():
        user = _account(person.sub)
        if again is not None and (user is None or user.pk != again.account):
            raise Refused("other", "another person signed in", again.account)
        if user is None:
            if not roles:
                raise Refused(*why)
            user = _new_account(person.sub)
        if not user.is_active:
            raise Refused("inactive", "the account is deactivated", user.pk)
        _follow(user, person, roles)
    if not roles:  # out here, so that what was taken away stays taken away
        raise Refused(why[0], f"{why[1]} any more", user.pk)
    return user


def _account(sub: str) -> User | None:
    """The account of this person at the provider of now, locked."""
    found = StaffIdentity.objects.select_for_update(of=("self",)).filter(issuer=settings.MUNIMENT_OIDC_ISSUER, sub=sub)
    identity = found.first()
    return None if identity is None else User.objects.select_for_update().get(pk=identity.user_id)


def _new_account(sub: str) -> User:
    """A new member of staff, whatever other accounts have the same name or address. Raises Refused where the same
    person signs in twice at once."""
    user = User(username=f"oidc-{secrets.token_hex(6)}", is_staff=True)
    user.set_unusable_password()
    try:
        with transaction.atomic():
            user.save()
            StaffIdentity.objects.create(user=user, issuer=settings.MUNIMENT_OIDC_ISSUER, sub=sub)
    except IntegrityError:
        raise Refused("state", "the same person signed in twice at once") from None
    staff_roles.tell_about("system", "", "staff.add", user, how="oidc")
    return user


def _follow(user: User, person: Person, roles: frozenset[str]) -> None:
    """What the provider says of them now: names, address, roles. Nobody is a superuser by it, or stays one."""
    user.first_name, user.last_name, user.email = person.given_name, person.family_name, person.email
    before = staff_roles.held_by(user)
    user.is_superuser, user.is_staff = False, bool(roles)
    user.save(update_fields=["first_name", "last_name", "email", "is_superuser", "is_staff"])
    user.user_permissions.clear()
    staff_roles.give(user, roles)
    if settings.MUNIMENT_OIDC_TENANTS_CLAIM and roles:
        _confine(user, person.tenants or ())
    if before != (after := staff_roles.held_by(user)):
        staff_roles.tell_about("system", "", "staff.roles", user, how="oidc", before=before, after=after)
    if roles:
        StaffIdentity.objects.filter(user=user).update(last_sign_in=timezone.now())


def _confine(user: User, tenants: Iterable[str]) -> None:
    """To what the provider says of now."""
    before = staff_tenants.held_by(user)
    if before != (after := sorted(tenants)):
        staff_tenants.give(user, after)
        staff_roles.tell_about("system", "", "staff.tenants", user, how="oidc", before=before, after=after)
