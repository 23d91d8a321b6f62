"""Staff sign in at a provider: what is asked of it, which answers are believed, whom they make of somebody, and that no
answer, and no caller, gets more than a sentence."""

import hmac
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client as HttpClient

from audit.models import Outbox
from governance import oidc_provider, staff_oidc
from governance.models import StaffIdentity
from tests.governance import idp as provider
from tests.governance.idp import EC, ED, RSA, SECRET, STRANGER, Idp, as_json, configure, public, raw, signed
from tests.staff import drained, newest, readable, signed_in, statement

START, AGAIN, LOGIN = "/admin/sign-in/provider/", "/admin/sign-in/again/", "/admin/login/"
CALLBACK = "/admin/sign-in/provider/callback/"


@pytest.fixture
def idp(db: None, settings: Any) -> Iterator[Idp]:
    """A provider with an auditor, and nothing remembered of another one."""
    oidc_provider.provider.cache_clear()
    with provider.running() as running:
        configure(settings, running.issuer)
        running.people["u-1"] = {
            "groups": ["compliance"], "given_name": "Ada", "family_name": "Byron", "email": "ada@example.com"
        }  # fmt: skip
        yield running


@pytest.fixture
def http(idp: Idp) -> HttpClient:
    return HttpClient(raise_request_exception=True)


def begin(http: HttpClient, query: str = "") -> str:
    """Where the way to the provider leads."""
    response = http.get(START + query)
    assert response.status_code == 302, response.content
    return str(response["Location"])


def come(http: HttpClient, idp: Idp, sub: str = "u-1", query: str = "", **more: Any) -> Any:
    """The whole way."""
    return http.get(idp.authorize(begin(http, query), sub, **more))


def is_inside(http: HttpClient) -> bool:
    """Whether somebody is signed in. (`http.session` would make a session where there is none.)"""
    return "sessionid" in http.cookies and "_auth_user_id" in http.session


def said(http: HttpClient, response: Any) -> str:
    """What the sign-in page says after a failure, which it always leads back to."""
    assert response.status_code == 302 and urlsplit(response["Location"]).path == LOGIN, response.status_code
    page = http.get(response["Location"]).content.decode()
    assert not is_inside(http)
    [words] = re.findall(r'<p class="errornote" role="alert">(.*?)</p>', page)
    return str(words)


def refused(http: HttpClient, idp: Idp, reason: str = "token", **more: Any) -> None:
    """Nobody is signed in, a sentence says so, and the log has it."""
    words = said(http, come(http, idp, **more))
    assert staff_oidc.REASONS[reason].split(",")[0].split(".")[0] in words.replace("&#x27;", "'")
    assert re.search(r"Reference: [0-9a-f]{8}$", words)
    entry = Outbox.objects.latest("id")
    assert (entry.members["action"], entry.members["reason"]) == ("staff.sign_in_failed", reason)
    assert not User.objects.exists() and not StaffIdentity.objects.exists()


# --- what is asked ---------------------------------------------------------------------------------------------


def test_the_way_there_has_pkce_state_nonce_and_the_callback(http: HttpClient, idp: Idp) -> None:
    location = begin(http)
    asked = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
    assert location.startswith(f"{idp.issuer}/authorize?")
    assert asked["response_type"] == "code" and asked["code_challenge_method"] == "S256"
    assert asked["scope"] == "openid email profile"
    assert asked["redirect_uri"] == f"http://testserver{CALLBACK}"
    assert len(asked["state"]) == len(asked["nonce"]) == 32 and asked["state"] != asked["nonce"]
    assert len(asked["code_challenge"]) == 43
    assert "prompt" not in asked
    assert SECRET not in location


def test_the_secret_goes_to_the_token_endpoint_in_the_header_or_the_form_as_the_provider_says(
    http: HttpClient, idp: Idp
) -> None:
    assert come(http, idp)["Location"] == "/admin/"
    [form] = [form for path, form in idp.asked if path == "/token"]
    assert "client_secret" not in form and 43 <= len(form["code_verifier"]) <= 128
    oidc_provider.provider.cache_clear()
    idp.discovery = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    said(other := HttpClient(), come(other, idp))  # this provider still wants the header
    assert [form for path, form in idp.asked if path == "/token"][-1]["client_secret"] == SECRET
    oidc_provider.provider.cache_clear()
    idp.discovery = {"token_endpoint_auth_methods_supported": ["private_key_jwt"]}
    assert "could not be reached" in said(other, other.get(START))


def test_an_authorization_endpoint_with_a_query_keeps_it(http: HttpClient, idp: Idp) -> None:
    idp.discovery = {"authorization_endpoint": f"{idp.issuer}/authorize?p=staff"}
    assert begin(http).startswith(f"{idp.issuer}/authorize?p=staff&response_type=code&")


# --- who comes in ----------------------------------------------------------------------------------------------


def test_somebody_new_becomes_a_member_of_staff_with_the_roles_of_their_groups(http: HttpClient, idp: Idp) -> None:
    idp.people["u-1"]["groups"] = ["compliance", "granters", "everybody"]
    assert come(http, idp, query="?next=/admin/clients/grant/")["Location"] == "/admin/clients/grant/"
    user = User.objects.get()
    assert (user.get_full_name(), user.email) == ("Ada Byron", "ada@example.com")
    assert re.fullmatch(r"oidc-[0-9a-f]{12}", user.username)
    assert not user.has_usable_password() and user.is_staff and not user.is_superuser
    assert sorted(user.groups.values_list("name", flat=True)) == ["Access manager", "Auditor"]
    assert (user.identity.issuer, user.identity.sub) == (idp.issuer, "u-1")
    assert http.get("/admin/").status_code == 200
    told = newest("staff")
    assert (told["action"], told["how"], told["actor"]) == ("staff.sign_in", "oidc", f"staff:{user.pk}")
    assert told["roles"] == ["Auditor", "Access manager"]
    assert "Ada" not in readable(told) and "u-1" not in readable(told)


def test_the_same_person_is_the_same_account_whatever_their_name_and_address(http: HttpClient, idp: Idp) -> None:
    come(http, idp)
    idp.people["u-1"] |= {"email": "ada@elsewhere.example", "given_name": "Augusta"}
    come(HttpClient(), idp)
    user = User.objects.get()
    assert (user.email, user.first_name) == ("ada@elsewhere.example", "Augusta")


def test_the_address_of_a_local_superuser_makes_nobody_a_superuser(http: HttpClient, idp: Idp) -> None:
    root = User.objects.create_superuser("root", "ada@example.com", "correct horse battery")
    idp.people["u-1"] |= {"email": "ada@example.com", "preferred_username": "root", "name": "root"}
    come(http, idp)
    assert http.session["_auth_user_id"] != str(root.pk)
    assert not User.objects.exclude(pk=root.pk).get().is_superuser
    assert not hasattr(User.objects.get(pk=root.pk), "identity")


def test_another_sub_is_another_person_and_case_counts(http: HttpClient, idp: Idp) -> None:
    idp.people["U-1"] = dict(idp.people["u-1"])
    come(http, idp)
    come(HttpClient(), idp, sub="U-1")
    assert User.objects.count() == StaffIdentity.objects.count() == 2


def test_the_same_sub_of_another_issuer_is_another_person(http: HttpClient, idp: Idp, settings: Any) -> None:
    come(http, idp)
    StaffIdentity.objects.update(issuer="https://old.example")
    come(HttpClient(), idp)
    assert User.objects.count() == 2


@pytest.mark.parametrize(
    "groups", [[], ["Compliance"], ["compliance "], "everybody", {"compliance": 1}, [["compliance"]], None, 7]
)
def test_somebody_without_a_mapped_group_is_refused_and_not_made_staff(http: HttpClient, idp: Idp, groups: Any) -> None:
    idp.people["u-1"]["groups"] = groups
    refused(http, idp, "no_role")


def test_one_group_may_come_as_a_text_and_under_another_name(http: HttpClient, idp: Idp, settings: Any) -> None:
    settings.MUNIMENT_OIDC_GROUPS_CLAIM = "https://claims.example/groups"
    idp.people["u-1"] |= {"https://claims.example/groups": "admins"}
    come(http, idp)
    assert User.objects.get().groups.get().name == "Administrator"


def test_roles_follow_the_groups_of_each_sign_in_and_each_change_is_recorded(http: HttpClient, idp: Idp) -> None:
    come(http, idp)
    idp.people["u-1"]["groups"] = ["granters"]
    come(HttpClient(), idp)
    user = User.objects.get()
    assert [group.name for group in user.groups.all()] == ["Access manager"]
    told = Outbox.objects.filter(members__action="staff.roles").latest("id")
    assert told.members == {
        "action": "staff.roles", "about": f"staff:{user.pk}", "before": ["Auditor"], "after": ["Access manager"],
        "how": "oidc",
    }  # fmt: skip
    assert told.private["about_name"] == "Ada Byron"


def test_who_has_lost_every_group_loses_every_role_at_once_and_stays_out(http: HttpClient, idp: Idp) -> None:
    come(http, idp)
    idp.people["u-1"]["groups"] = []
    other = HttpClient()
    assert "None of your groups" in said(other, come(other, idp))
    user = User.objects.get()
    assert not user.groups.exists() and not user.is_staff
    assert http.get("/admin/clients/grant/").status_code == 302, "the session that was open shows nothing any more"
    idp.people["u-1"]["groups"] = ["compliance"]
    assert come(HttpClient(), idp)["Location"] == "/admin/"


def test_a_superuser_who_comes_by_the_provider_is_none_any_more(http: HttpClient, idp: Idp) -> None:
    come(http, idp)
    User.objects.update(is_superuser=True)
    come(HttpClient(), idp)
    assert not User.objects.get().is_superuser
    told = Outbox.objects.filter(members__action="staff.roles").latest("id")
    assert told.members["before"] == ["Superuser", "Auditor"] and told.members["after"] == ["Auditor"]


def test_a_deactivated_account_is_refused(http: HttpClient, idp: Idp) -> None:
    come(http, idp)
    User.objects.update(is_active=False)
    assert http.get("/admin/").status_code == 302
    other = HttpClient()
    assert "deactivated" in said(other, come(other, idp))
    entry = Outbox.objects.latest("id")
    assert (entry.members["reason"], entry.members["about"]) == ("inactive", f"staff:{User.objects.get().pk}")


@pytest.mark.parametrize("claim", ["given_name", "family_name", "email", "name"])
@pytest.mark.parametrize("value", ["a\x00b", "\ud800", "x" * 1000, ["a"], {"a": 1}, 3, None])
def test_names_that_cannot_be_kept_are_left_out(http: HttpClient, idp: Idp, claim: str, value: Any) -> None:
    idp.people["u-1"] |= {claim: value}
    assert come(http, idp)["Location"] == "/admin/"


# --- which tokens are believed ---------------------------------------------------------------------------------

now = time.time
CLAIMS: dict[str, dict[str, Callable[[Idp], Any]]] = {
    "another issuer": {"iss": lambda idp: "https://evil.example"},
    "the issuer with a slash": {"iss": lambda idp: idp.issuer + "/"},
    "no issuer": {"iss": lambda idp: None},
    "an issuer that is no text": {"iss": lambda idp: [idp.issuer]},
    "another audience": {"aud": lambda idp: "another-client"},
    "no audience": {"aud": lambda idp: None},
    "an audience that is no text": {"aud": lambda idp: {"muniment-tests": 1}},
    "several audiences and no azp": {"aud": lambda idp: ["muniment-tests", "another-client"]},
    "several audiences and another azp": {
        "aud": lambda idp: ["muniment-tests", "another-client"], "azp": lambda idp: "another-client"
    },
    "one audience and another azp": {"azp": lambda idp: "another-client"},
    "a nonce of another sign-in": {"nonce": lambda idp: "x" * 32},
    "no nonce": {"nonce": lambda idp: None},
    "a nonce that is no text": {"nonce": lambda idp: ["x"]},
    "a nonce of half a character": {"nonce": lambda idp: "\ud800"},
    "expired": {"exp": lambda idp: int(now()) - 31},
    "no exp": {"exp": lambda idp: None},
    "exp as a text": {"exp": lambda idp: str(int(now()) + 300)},
    "exp beyond all dates": {"exp": lambda idp: 10**300},
    "exp as a fraction": {"exp": lambda idp: 1e300},
    "exp as a truth": {"exp": lambda idp: True},
    "no iat": {"iat": lambda idp: None},
    "issued in the future": {"iat": lambda idp: int(now()) + 90},
    "not valid yet": {"nbf": lambda idp: int(now()) + 90},
    "no sub": {"sub": lambda idp: None},
    "an empty sub": {"sub": lambda idp: ""},
    "a sub that is no text": {"sub": lambda idp: 1},
    "a sub that cannot be kept": {"sub": lambda idp: "u\x00"},
    "a sub of half a character": {"sub": lambda idp: "\ud800"},
    "a very long sub": {"sub": lambda idp: "x" * 256},
}  # fmt: skip


@pytest.mark.parametrize("wrong", CLAIMS)
def test_a_token_that_says_something_else_is_refused(http: HttpClient, idp: Idp, wrong: str) -> None:
    idp.claims = {name: make(idp) for name, make in CLAIMS[wrong].items()}
    refused(http, idp)


@pytest.mark.parametrize(
    "good",
    [
        {"aud": ["muniment-tests"]}, {"aud": ["other", "muniment-tests"], "azp": "muniment-tests"},
        {"azp": "muniment-tests"}, {"exp": int(now()) - 5}, {"iat": int(now()) + 20}, {"nbf": int(now()) - 5},
    ],
)  # fmt: skip
def test_the_nearest_token_that_is_good_is_believed(http: HttpClient, idp: Idp, good: dict[str, Any]) -> None:
    if "exp" in good or "iat" in good:
        good = {name: value + int(now() - STARTED) for name, value in good.items()}
    idp.claims = good
    assert come(http, idp)["Location"] == "/admin/"


STARTED = now()
PEM = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def hs256(key: bytes) -> Callable[..., str]:
    return lambda header, claims: raw(header | {"alg": "HS256"}, claims, lambda text: hmac.digest(key, text, "sha256"))


def altered(header: dict[str, Any], claims: dict[str, Any]) -> str:
    first, second = (signed(RSA, "RS256")(header, claims | {"sub": sub}).split(".") for sub in ("u-1", "u-2"))
    return f"{first[0]}.{second[1]}.{first[2]}"


SIGNATURES: dict[str, Callable[..., Any]] = {
    "none": lambda header, claims: raw(header | {"alg": "none"}, claims),
    "None in capitals": lambda header, claims: raw(header | {"alg": "nOnE"}, claims),
    "no algorithm": lambda header, claims: raw(header, claims),
    "an algorithm that is a list": lambda header, claims: raw(header | {"alg": ["RS256"]}, claims),
    "HS256 with the public key": hs256(PEM),
    "HS256 with the client secret": hs256(SECRET.encode()),
    "another key": signed(STRANGER, "RS256"),
    "the signature of another token": altered,
    "no signature": lambda header, claims: raw(header | {"alg": "RS256"}, claims),
    "an algorithm that the key is not for": signed(RSA, "RS512"),
    "an unknown kid": lambda header, claims: signed(RSA, "RS256")({"kid": "k2"}, claims),
    "a kid that is no text": lambda header, claims: raw({"alg": "RS256", "kid": 7}, claims),
    "a critical extension": lambda header, claims: signed(RSA, "RS256")(header | {"crit": ["x"], "x": 1}, claims),
    "the type of an access token": lambda header, claims: signed(RSA, "RS256")(header | {"typ": "at+jwt"}, claims),
    "the type of a logout token": lambda header, claims: signed(RSA, "RS256")(header | {"typ": "logout+jwt"}, claims),
    "a key in the header": lambda header, claims: signed(STRANGER, "RS256")(
        header | {"jwk": public(STRANGER), "jku": "http://127.0.0.1:1/jwks"}, claims
    ),
    "claims that are no object": lambda header, claims: raw(header | {"alg": "RS256"}, []),
    "claims that are no JSON": lambda header, claims: raw(header | {"alg": "RS256"}, b"{"),
    "a claim twice": lambda header, claims: raw(header | {"alg": "RS256"}, b'{"iss":1,"iss":2}'),
    "a text of one part": lambda header, claims: "token",
    "nothing": lambda header, claims: None,
    "an object": lambda header, claims: {"a": 1},
    "an empty text": lambda header, claims: "",
    "a token of 20 KiB": lambda header, claims: raw(header | {"alg": "RS256"}, {"x": "x" * 20_000}),
    "half a character": lambda header, claims: "\ud800.\ud800.\ud800",
}


@pytest.mark.parametrize("wrong", SIGNATURES)
def test_a_token_that_the_provider_did_not_sign_is_refused(http: HttpClient, idp: Idp, wrong: str) -> None:
    idp.sign = SIGNATURES[wrong]
    refused(http, idp)


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(RSA, "RS256"), (RSA, "PS256"), (EC, "ES256"), (ED, "EdDSA")],
    ids=lambda value: str(value)[:6],
)
@pytest.mark.parametrize("kid", [None, "k1"])
def test_the_usual_algorithms_are_taken_with_a_named_key_or_without(
    http: HttpClient, idp: Idp, key: Any, algorithm: str, kid: str | None
) -> None:
    idp.jwks = {"keys": [public(STRANGER, kid="k9"), public(key) | ({"kid": kid} if kid else {})]}
    idp.sign, idp.header = signed(key, algorithm), {}
    assert come(http, idp)["Location"] == "/admin/"


def test_a_key_without_a_name_may_be_the_one_that_is_named(http: HttpClient, idp: Idp) -> None:
    idp.jwks = {"keys": [public(RSA)]}
    assert come(http, idp)["Location"] == "/admin/"


def test_a_rotated_key_is_fetched_and_a_made_up_one_is_not_fetched_for_ever(
    http: HttpClient, idp: Idp, monkeypatch: pytest.MonkeyPatch
) -> None:
    come(http, idp)
    idp.jwks, idp.sign, idp.header = {"keys": [public(EC, kid="k2")]}, signed(EC, "ES256"), {"kid": "k2"}
    monkeypatch.setattr(oidc_provider, "REST", 0.0)
    assert come(HttpClient(), idp)["Location"] == "/admin/"
    monkeypatch.setattr(oidc_provider, "REST", 10.0)
    idp.header = {"kid": "k3"}
    for _ in range(3):
        said(other := HttpClient(), come(other, idp))
    assert [path for path, _ in idp.asked].count("/jwks") == 2


# --- a provider that does not work -----------------------------------------------------------------------------


over = threading.Event()  # a test: until then a slow answer does not come


@pytest.fixture
def ending() -> Iterator[None]:
    """A slow answer comes when the test is over."""
    over.clear()
    yield
    over.set()


def slow() -> Any:
    over.wait(60)
    return as_json({})


ANSWERS: dict[str, Callable[[], Any]] = {
    "an error": lambda: as_json({"error": "invalid_grant", "error_description": "s3cret detail"}, 400),
    "a fault": lambda: (500, {}, b"s3cret detail"),
    "a redirect": lambda: (302, {"Location": "http://127.0.0.1:1/"}, b""),
    "a permanent redirect": lambda: (308, {"Location": "/elsewhere"}, b""),
    "no JSON": lambda: (200, {}, b"<html>"),
    "no object": lambda: as_json([]),
    "nothing": lambda: (200, {}, b""),
    "a huge answer": lambda: as_json({"x": "x" * 300_000}),
    "a compressed answer": lambda: (200, {"Content-Encoding": "gzip"}, b"x"),
    "a slow answer": slow,
    "half an answer": lambda: (200, {"Content-Length": "500"}, b"{}"),
}  # fmt: skip


@pytest.mark.parametrize("path", ["/token", "/jwks"])
@pytest.mark.parametrize("wrong", ANSWERS)
def test_what_is_no_answer_ends_at_the_sign_in_page_in_time(
    http: HttpClient, idp: Idp, ending: None, monkeypatch: pytest.MonkeyPatch, wrong: str, path: str
) -> None:
    if wrong == "a slow answer":  # beside the others, an honest one may take longer
        monkeypatch.setattr(oidc_provider, "TIMEOUT", 0.5)
    idp.answers[path] = ANSWERS[wrong]
    started = time.monotonic()
    refused(http, idp, "provider")
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("wrong", ANSWERS)
def test_without_discovery_nothing_is_begun(
    http: HttpClient, idp: Idp, ending: None, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(oidc_provider, "TIMEOUT", 0.5)
    idp.answers["/.well-known/openid-configuration"] = ANSWERS[wrong]
    assert "could not be reached" in said(http, http.get(START))
    asked = len(idp.asked)
    assert "could not be reached" in said(http, http.get(START)) and len(idp.asked) == asked, "it rests a while"
    assert "Sign in with" in http.get(LOGIN).content.decode(), "the page itself asks nobody"


def test_the_time_limit_is_five_seconds_and_the_size_is_bounded() -> None:
    assert (oidc_provider.TIMEOUT, oidc_provider.MAX_BYTES) == (5.0, 262_144)


def test_no_more_than_a_few_threads_wait_for_a_provider(http: HttpClient, idp: Idp) -> None:
    callback = idp.authorize(begin(http))
    with ExitStack() as held:
        for _ in range(oidc_provider.WAITERS):
            held.enter_context(oidc_provider.turn())
        assert "could not be reached" in said(http, http.get(callback))
    assert come(http, idp)["Location"] == "/admin/"


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "https://evil.example"}, {"issuer": None}, {"token_endpoint": "http://idp.example/token"},
        {"token_endpoint": None}, {"authorization_endpoint": "javascript:alert(1)"}, {"jwks_uri": ["x"]},
        {"authorization_endpoint": "https://a@b.example/"}, {"authorization_endpoint": "https://b.example/\r\nX: y"},
        {"authorization_endpoint": "//evil.example"}, {"jwks_uri": "file:///etc/passwd"},
        {"token_endpoint_auth_methods_supported": "client_secret_basic"},
    ],
    ids=str,
)  # fmt: skip
def test_discovery_that_does_not_fit_is_not_used(http: HttpClient, idp: Idp, wrong: dict[str, Any]) -> None:
    idp.discovery = wrong
    assert "could not be reached" in said(http, http.get(START))


def test_a_key_set_without_a_good_key_is_not_used(http: HttpClient, idp: Idp) -> None:
    idp.jwks = {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "k1"}]}
    refused(http, idp, "provider")


# --- what a caller can do with the callback --------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    ["", "?code=x", "?state=x", "?code=x&state=x", "?error=access_denied", "?error=x&state=%00", "?state=%FF&code=%00",
     "?code=" + "x" * 5000 + "&state=" + "y" * 5000],
)  # fmt: skip
def test_a_callback_that_nothing_began_changes_nothing_and_is_not_recorded(
    http: HttpClient, idp: Idp, query: str
) -> None:
    assert "begun in another browser" in said(http, http.get(CALLBACK + query))
    assert idp.asked == [] and not Outbox.objects.exists() and not Session.objects.exists()
    inside = signed_in(User.objects.create_user("vera", "", None, is_staff=True))
    inside.get(CALLBACK + query)
    assert inside.get("/admin/").status_code == 200, "no link signs anybody out"


def test_a_callback_counts_once_and_in_its_own_browser(http: HttpClient, idp: Idp) -> None:
    callback = idp.authorize(begin(http))
    stranger = HttpClient()
    assert "begun in another browser" in said(stranger, stranger.get(callback))
    assert http.get(callback)["Location"] == "/admin/"
    User.objects.update(first_name="Kept")
    assert http.get(callback).status_code == 302 and http.get("/admin/").status_code == 200
    assert User.objects.get().first_name == "Kept"


@pytest.mark.parametrize("code", ["", "%00", "a%0Ab", "%C3%A9", "x" * 5000])
def test_a_code_that_cannot_be_is_not_sent_on(http: HttpClient, idp: Idp, code: str) -> None:
    state = parse_qs(urlsplit(begin(http)).query)["state"][0]
    said(http, http.get(f"{CALLBACK}?state={state}&code={code}"))
    assert "/token" not in [path for path, _ in idp.asked]


def test_a_code_that_is_made_up_gets_a_sentence(http: HttpClient, idp: Idp) -> None:
    state = parse_qs(urlsplit(begin(http)).query)["state"][0]
    assert "could not be reached" in said(http, http.get(f"{CALLBACK}?state={state}&code=made-up"))


def test_a_denial_at_the_provider_is_told_and_recorded(http: HttpClient, idp: Idp) -> None:
    state = parse_qs(urlsplit(begin(http)).query)["state"][0]
    words = said(http, http.get(f"{CALLBACK}?state={state}&error=access_denied&error_description=<b>x</b>"))
    assert "did not sign you in" in words and "<b>" not in words
    assert Outbox.objects.get().members == {"action": "staff.sign_in_failed", "how": "oidc", "reason": "denied"}


def test_what_was_begun_ends_after_ten_minutes(http: HttpClient, idp: Idp, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = idp.authorize(begin(http))
    [session] = Session.objects.all()
    assert session.expire_date.timestamp() - now() < 601, "what strangers begin does not stay"
    later = now() + 601
    monkeypatch.setattr("governance.oidc_flow.time.time", lambda: later)
    assert "too long ago" in said(http, http.get(callback))


def test_the_answer_names_the_issuer_that_was_asked(http: HttpClient, idp: Idp) -> None:
    callback = idp.authorize(begin(http))
    said(http, http.get(f"{callback}&iss=https://evil.example"))
    assert http.get(f"{idp.authorize(begin(http))}&iss={idp.issuer}")["Location"] == "/admin/"
    oidc_provider.provider.cache_clear()
    idp.discovery = {"authorization_response_iss_parameter_supported": True}
    said(other := HttpClient(), come(other, idp))


@pytest.mark.parametrize(
    "goal",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x", "", "/" + "x" * 3000, "/a\nb",
     "\x00", "http:///evil.example"],
)  # fmt: skip
def test_the_way_on_stays_on_this_site(http: HttpClient, idp: Idp, goal: str) -> None:
    location = http.get(START, {"next": goal})["Location"]
    assert http.get(idp.authorize(location))["Location"] == "/admin/"


def test_the_callback_takes_no_post(http: HttpClient) -> None:
    assert http.post(CALLBACK, {"code": "x", "state": "y"}).status_code == 405
    assert http.post(START).status_code == 405


def test_without_a_provider_there_is_no_such_way(db: None) -> None:
    http = HttpClient()
    assert http.get(START).status_code == http.get(CALLBACK).status_code == 404
    assert "Sign in with" not in http.get(LOGIN).content.decode()


def test_begun_too_often_from_one_address_it_is_turned_away(
    http: HttpClient, idp: Idp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("governance.sign_in_throttle.STARTS_PER_ADDRESS", 2)
    begin(http), begin(http)
    assert "Too many sign-ins were begun" in said(http, http.get(START))
    assert Session.objects.count() == 1


def test_no_secret_gets_into_the_log_of_the_process(
    http: HttpClient, idp: Idp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    idp.answers["/token"] = ANSWERS["an error"]
    words = said(http, come(http, idp))
    del idp.answers["/token"]
    idp.claims = {"exp": 1}
    said(http, come(http, idp))
    assert words.rpartition(" ")[2] in caplog.text, "the reference is there"
    sent = next(form for path, form in idp.asked if path == "/token")
    for secret in (SECRET, "s3cret detail", sent["code"], sent["code_verifier"], "ada@example.com", "u-1", "eyJ"):
        assert secret not in caplog.text and secret not in words


def test_a_new_session_key_comes_with_the_sign_in(http: HttpClient, idp: Idp) -> None:
    callback = idp.authorize(begin(http))
    before = http.cookies["sessionid"].value
    http.get(callback)
    assert http.cookies["sessionid"].value != before
    assert not Session.objects.filter(session_key=before).exists()
    assert "oidc_states" not in http.session


def test_a_session_ends_when_the_provider_is_taken_out_of_the_settings(
    http: HttpClient, idp: Idp, settings: Any
) -> None:
    come(http, idp)
    settings.MUNIMENT_OIDC_ISSUER = ""
    assert http.get("/admin/").status_code == 302


# --- signing in again ------------------------------------------------------------------------------------------


@pytest.fixture
def inside(http: HttpClient, idp: Idp) -> HttpClient:
    """Ada, half an hour ago."""
    come(http, idp)
    session = http.session
    session["muniment_signed_in_at"] = int(now()) - 1800
    session.save()
    return http


def again(http: HttpClient, idp: Idp, sub: str = "u-1", **more: Any) -> Any:
    return come(http, idp, sub, "?again=1&next=/admin/clients/grant/", **more)


def is_recent(http: HttpClient) -> bool:
    return now() - http.session["muniment_signed_in_at"] < 60


def test_again_is_asked_of_the_provider_and_must_be_fresh(inside: HttpClient, idp: Idp) -> None:
    page = inside.get(f"{AGAIN}?next=/admin/clients/grant/").content.decode()
    assert 'href="/admin/sign-in/provider/?next=%2Fadmin%2Fclients%2Fgrant%2F&amp;again=1"' in page
    assert 'name="password"' not in page
    asked = parse_qs(urlsplit(begin(inside, "?again=1")).query)
    assert (asked["prompt"], asked["max_age"]) == (["login"], ["0"])
    before = inside.cookies["sessionid"].value
    assert not is_recent(inside)
    assert again(inside, idp)["Location"] == "/admin/clients/grant/"
    assert is_recent(inside) and inside.cookies["sessionid"].value != before
    told = newest("staff")
    assert (told["action"], told["how"]) == ("staff.sign_in_again", "oidc")
    assert inside.get("/admin/").status_code == 200


@pytest.mark.parametrize("auth_time", [None, "now", True, "an hour ago", "in an hour", 1.5])
def test_a_person_whom_the_provider_did_not_ask_again_is_refused_and_stays_in(
    inside: HttpClient, idp: Idp, auth_time: Any
) -> None:
    dates = {"an hour ago": int(now()) - 3600, "in an hour": int(now()) + 3600}
    response = again(inside, idp, auth_time=dates.get(auth_time, auth_time))
    assert urlsplit(response["Location"]).path == AGAIN
    assert "could not be verified" in inside.get(response["Location"]).content.decode()
    assert not is_recent(inside) and inside.get("/admin/").status_code == 200
    entry = Outbox.objects.latest("id")
    assert (entry.members["reason"], entry.members["about"]) == ("token", f"staff:{User.objects.get().pk}")


def test_somebody_else_does_not_show_it_for_them_and_is_not_made_staff(inside: HttpClient, idp: Idp) -> None:
    idp.people["u-2"] = {"groups": ["admins"]}
    response = again(inside, idp, "u-2")
    assert "That was somebody else" in inside.get(response["Location"]).content.decode()
    assert not is_recent(inside) and User.objects.count() == 1
    come(HttpClient(), idp, "u-2")
    again(inside, idp, "u-2")
    assert not is_recent(inside) and inside.session["_auth_user_id"] == str(
        StaffIdentity.objects.get(sub="u-1").user_id
    )


def test_again_without_a_session_of_the_provider_is_not_begun(http: HttpClient, idp: Idp) -> None:
    assert http.get(f"{START}?again=1")["Location"] == LOGIN
    local = signed_in(User.objects.create_user("vera", "", "correct horse battery", is_staff=True))
    assert local.get(f"{START}?again=1")["Location"] == LOGIN
    assert 'name="password"' in local.get(AGAIN).content.decode()


def test_an_answer_for_again_does_not_sign_in_after_a_sign_out(inside: HttpClient, idp: Idp) -> None:
    callback = idp.authorize(begin(inside, "?again=1"))
    inside.post("/admin/logout/")
    assert "_auth_user_id" not in inside.session
    assert inside.get(callback).status_code == 302 and "_auth_user_id" not in inside.session


def test_who_is_signed_in_is_not_sent_to_the_provider(inside: HttpClient, idp: Idp) -> None:
    asked = len(idp.asked)
    assert inside.get(f"{START}?next=/admin/records/")["Location"] == "/admin/records/"
    assert inside.get(f"{LOGIN}?next=/admin/records/")["Location"] == "/admin/records/"
    assert len(idp.asked) == asked


# --- a provider that is not ours -------------------------------------------------------------------------------


def test_a_real_provider_of_somebody_elses_signs_staff_in(db: None, settings: Any) -> None:
    import requests
    from oidc_provider_mock import User as Person
    from oidc_provider_mock import run_server_in_thread

    people = [Person(sub="mona", claims={"groups": ["compliance"], "email": "mona@example.com"}), Person(sub="nils")]
    oidc_provider.provider.cache_clear()
    with run_server_in_thread(user_claims=people) as server:
        configure(settings, f"http://localhost:{server.server_port}")
        for sub, goal in (("mona", "/admin/"), ("nils", LOGIN)):
            http = HttpClient()
            answer = requests.post(begin(http), data={"sub": sub}, allow_redirects=False, timeout=30)
            back = urlsplit(answer.headers["Location"])
            assert urlsplit(http.get(f"{back.path}?{back.query}")["Location"]).path == goal
    user = User.objects.get()
    assert (user.email, user.identity.sub, user.groups.get().name) == ("mona@example.com", "mona", "Auditor")


def test_failures_are_in_the_log_without_a_name(http: HttpClient, idp: Idp) -> None:
    idp.people["u-1"]["groups"] = []
    come(http, idp)
    drained()
    from audit.models import Record

    told = statement(Record.objects.get(type="staff"))
    assert told["actor"] == "system" and told["reason"] == "no_role" and "u-1" not in readable(told)


def test_digest_of_a_code_verifier_is_what_was_promised() -> None:
    from mozilla_django_oidc.utils import generate_code_challenge

    assert generate_code_challenge("x" * 64, "S256") == provider.b64(sha256(b"x" * 64).digest())
