"""The page “Try claims”: it shows what a call would read, refuses what a call would refuse, keeps nothing, and bears
whatever is pasted into it."""

import json
import time
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.test import Client as HttpClient
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.models import Outbox, Record
from clients.claims import Refused, read_parsed_claims
from clients.claims_trial import MAX_TEXT, Trial, tried, without_signature
from clients.jwks import ClaimRules
from clients.models import ClaimMapping, Client, Issuer, IssuerBinding
from clients.tokens import refuse_other_kinds
from tests.clients.keys import AUDIENCE, ISSUER, NOW, b64, dump, policy, signing_key, usual_claims
from tests.staff import administrator, drained, member
from tests.world import World, build, token

KEY = signing_key("ES256")


def attempt(claims: Any, /, accepted: bool = True, audiences: str = AUDIENCE, **changes: Any) -> Trial:
    """Claims, or a text, as one of the usual issuer."""
    text = claims if isinstance(claims, str) else json.dumps(claims)
    return tried(without_signature(text), policy(**changes)[ISSUER], frozenset({audiences}), accepted, NOW)


def reasons(trial: Trial) -> dict[str, str]:
    return {one.part: one.reason for one in trial.refusals}


# What is read, without a page


def test_good_claims_are_read_part_by_part() -> None:
    rules = ClaimRules(subject="oid", scopes=("can",))
    claims = usual_claims() | {"oid": "u1", "can": ["memory:write"], "org": "acme", "roles": ["doctor"]}
    claims |= {"email": "a@b.example", "act": {"sub": "planner", "act": {"sub": "boss"}}}
    found = attempt(claims, claims=rules, tenant_claim="org", roles_claim="roles")
    assert not found.refusals
    read = {one.part: one.values for one in found.findings}
    assert (read["user"], read["scopes"], read["tenant"]) == (("u1",), ("memory:write",), ("acme",))
    assert (read["roles"], read["email"], read["actors"]) == (("doctor",), ("a@b.example",), ("planner", "boss"))
    assert read["times"][0].startswith("issued 2025-10-09") and read["bound"] == ()
    assert next(one.note for one in found.findings if one.part == "user") == "from oid"


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"iss": ISSUER.rstrip("/")}, {"issuer": "issuer_unknown"}),
        ({"aud": "other"}, {"audience": "audience_mismatch"}),
        ({"exp": NOW - 3600, "iat": NOW - 7200}, {"times": "token_expired"}),
        ({"sub": ""}, {"user": "token_invalid"}),
        ({"cnf": {"kid": "x"}}, {"bound": "proof_required"}),
        ({"scope": {"a": 1}, "client_id": 5}, {"scopes": "token_invalid", "client_id": "token_invalid"}),
        ({"act": {"nobody": 1}}, {"actors": "token_invalid"}),
        ({"token_use": "id"}, {"kind": "token_invalid"}),
        ({"client_id": None, "scope": None, "nonce": "n"}, {"kind": "token_invalid"}),
        ({"events": {}, "sub": None}, {"kind": "token_invalid", "user": "token_invalid"}),
    ],
)
def test_all_that_is_wrong_is_shown_at_once(changes: dict[str, Any], wrong: dict[str, str]) -> None:
    claims = {name: value for name, value in (usual_claims() | changes).items() if value is not None}
    assert reasons(attempt(claims)) == wrong


def test_an_issuer_that_the_backend_does_not_accept_refuses() -> None:
    assert reasons(attempt(usual_claims(), accepted=False)) == {"issuer": "issuer_unknown"}


def test_what_the_issuer_demands_of_a_binding_is_held_against_the_claims() -> None:
    key = {"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}
    assert reasons(attempt(usual_claims(), require_binding="any")) == {"bound": "proof_required"}
    assert reasons(attempt(usual_claims() | key, require_binding="any")) == {}
    assert reasons(attempt(usual_claims() | key, require_binding="mtls")) == {"bound": "proof_required"}
    assert attempt(usual_claims() | key).values("bound") == ("to a key: a call needs its DPoP proof",)


def test_of_a_whole_token_the_header_counts_and_the_signature_is_gone() -> None:
    token = KEY.token()
    for text in (token, f"Bearer {token}", f"Authorization: bearer {token}\n", f" {token[:40]}\n{token[40:]} "):
        tidied = without_signature(text)
        assert tidied == token[: token.rindex(".") + 1]
        assert not attempt(text).refusals
    assert reasons(attempt(KEY.token(None, {"typ": "logout+jwt"}))) == {"kind": "token_invalid"}
    assert reasons(attempt(KEY.token(), algorithms=frozenset({"RS256"}))) == {"algorithm": "token_invalid"}
    assert reasons(attempt(KEY.token(None, {"crit": ["exp"]}))) == {"algorithm": "token_invalid"}


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "null", "[]", "{", '{"iss": 1, "iss": 2}', '{"a": NaN}', "a" * 32, "....", "a.b.c", "\ufeff{}",
        '{"sub": "\ud800"', "[" * 50_000, "{" + '"a":{' * 20_000,
        "eyJhbGciOiJub25lIn0", f"{b64(b'{}')}.{b64(bytes(9))}.",
        f"{b64(dump({'alg': 'ES256'}))}.{b64(b'{' + bytes([34, 255, 34]) + b':1}')}.x", "<script>alert(1)</script>",
        f"{b64(dump({'alg': 'ES256'}))}.{b64(dump({'x': 'y' * 20_000}))}.",
    ],
)  # fmt: skip
def test_what_is_no_token_and_no_claims_is_said_to_be_none(text: str) -> None:
    found = attempt(text)
    [only] = found.findings
    assert only.part == "form" and only.reason in ("token_malformed", "token_missing")


def test_hostile_claims_are_refused_and_not_repeated() -> None:
    deep: Any = {"sub": "x"}
    for _ in range(200):
        deep = {"sub": "x", "act": deep}
    found = attempt(
        usual_claims()
        | {
            "sub": "a\u202eb",
            "email": "<b>\x00@",
            "roles": ["\ud800"],
            "act": deep,
            "exp": 10**400,
            "scope": ["\ud800"],
        },
        roles_claim="roles",
    )
    assert set(reasons(found)) == {"user", "roles", "actors", "times"}
    shown = repr(found.findings)
    assert "\\u202e" not in shown and "ud800" not in shown and "<b>" not in shown


VALUES = st.sampled_from(
    [
        None,
        "",
        "x",
        "a b",
        0,
        -1,
        10**12,
        1.5,
        True,
        [],
        ["x"],
        [5],
        [["x"]],
        {},
        {"sub": "x"},
        {"act": {}},
        "\u202e",
        AUDIENCE,
    ]
)
NAMES = ["iss", "aud", "exp", "iat", "nbf", "sub", "oid", "scope", "scp", "client_id", "azp", "roles", "org", "email",
         "email_verified", "act", "jti", "cnf", "nonce", "typ", "token_use", "at_hash"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), st.sets(st.sampled_from(NAMES), max_size=2))
@settings(max_examples=300, deadline=None)
def test_the_first_refusal_is_that_of_a_call(changes: dict[str, Any], left_out: set[str]) -> None:
    claims = usual_claims() | {"oid": "u1"} | changes
    claims = {name: value for name, value in claims.items() if name not in left_out}
    issuer = policy(claims=ClaimRules(subject="oid"), tenant_claim="org", roles_claim="roles")[ISSUER]
    expected: tuple[str, str] | None = None
    try:
        refuse_other_kinds({}, claims)
        identity = read_parsed_claims(claims, issuer, frozenset({AUDIENCE}), NOW)
    except Refused as refused:
        expected = refused.reason, refused.detail
    found = tried(json.dumps(claims), issuer, frozenset({AUDIENCE}), True, NOW)
    if expected is None:
        assert not found.refusals
        assert found.values("user") == (identity.sub,) and found.values("scopes") == identity.scopes
        assert found.values("roles") == identity.roles and found.values("actors") == identity.actors
    elif claims.get("iss") != ISSUER:
        assert found.refusals[0].reason == "issuer_unknown"
    else:
        assert (found.refusals[0].reason, found.refusals[0].detail) == expected


# The page


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def page() -> str:
    return f"/admin/clients/issuer/{Issuer.objects.get().pk}/claims/"


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    return usual_claims(now) | {"aud": AUDIENCE} | changes


def paste(http: HttpClient, world: World, text: str, **fields: Any) -> Any:
    data = {"claims": text, "backend": world.backend.pk, "tenant_claim": "", "roles_claim": "", "subject_claim": ""}
    data |= {"email_claim": "", "scope_claims": "", "client_id_claims": ""}
    return http.post(page(), data | fields)


def test_the_page_shows_what_is_read_and_whose_client_it_is(world: World, http: HttpClient) -> None:
    link = f"/admin/clients/issuer/{Issuer.objects.get().pk}/change/"
    assert page() in http.get(link).content.decode(), "it is found from the issuer"
    assert "Nothing is kept" in http.get(page()).content.decode()
    answer = paste(http, world, json.dumps(claims(scope="memory:read other:scope")))
    text = answer.content.decode()
    assert answer.status_code == 200 and "would be accepted" in text
    assert "the id of Claude" in text and "of no use: other:scope" in text
    assert "no-store" in answer.headers["Cache-Control"]
    unknown = paste(http, world, json.dumps(claims(client_id="stranger"))).content.decode()
    assert "client_unknown" in unknown and "stranger" in unknown
    assert "client_unknown" in paste(http, world, json.dumps(claims(client_id=None))).content.decode()
    Client.objects.update(status="suspended")
    assert "client_suspended" in paste(http, world, json.dumps(claims())).content.decode()


def test_the_page_reads_as_a_call_does(world: World, http: HttpClient) -> None:
    ClaimMapping.objects.create(issuer=Issuer.objects.get(), subject_claim="oid", scope_claims=["can"])
    for more, reason in (({"oid": "u1", "can": "memory:read"}, "granted"), ({"can": "memory:read"}, "token_invalid")):
        whole = token(**more)
        assert world.verify(token=whole)["reason"] == reason
        text = paste(http, world, whole, subject_claim="oid", scope_claims="can").content.decode()
        assert ("would be accepted" in text) == (reason == "granted")
        assert whole not in text and whole.rpartition(".")[2] not in text
        assert "Not saved" not in text


def test_a_mapping_that_is_not_saved_is_tried_and_stays_unsaved(world: World, http: HttpClient) -> None:
    answer = paste(http, world, json.dumps(claims(oid="u-77", groups=["doctor"])), subject_claim="oid",
                   roles_claim="groups")  # fmt: skip
    text = answer.content.decode()
    assert "u-77" in text and "doctor" in text and "Not saved" in text
    assert not ClaimMapping.objects.exists() and Issuer.objects.get().roles_claim is None
    wrong = paste(http, world, json.dumps(claims()), subject_claim="aud")
    assert wrong.status_code == 400 and "does not say who the user is" in wrong.content.decode()
    role = paste(http, world, json.dumps(claims()), scope_claims="groups", roles_claim="groups")
    assert role.status_code == 400 and "a role is never a scope" in role.content.decode()


def test_what_the_backend_and_the_issuer_are_set_to_counts(world: World, http: HttpClient) -> None:
    IssuerBinding.objects.create(issuer=Issuer.objects.get(), require="dpop")
    assert "proof_required" in paste(http, world, json.dumps(claims())).content.decode()
    IssuerBinding.objects.all().delete()
    world.backend.accepts_every_issuer = False
    world.backend.save()
    assert "issuer_unknown" in paste(http, world, json.dumps(claims())).content.decode()


def test_nothing_is_kept_of_what_was_pasted(world: World, http: HttpClient, caplog: pytest.LogCaptureFixture) -> None:
    drained()
    before = (Record.objects.count(), Outbox.objects.count())
    caplog.set_level(0)
    answer = paste(http, world, json.dumps(claims(sub="zz-private-zz", email="zz-private-zz@example.com")))
    assert "zz-private-zz" in answer.content.decode()
    drained()
    assert (Record.objects.count(), Outbox.objects.count()) == before
    assert "zz-private-zz" not in caplog.text and "zz-private-zz" not in str(answer.headers)
    kept = [session.get_decoded() for session in Session.objects.all()]
    assert "zz-private-zz" not in repr(kept) and "zz-private-zz" not in repr(answer.cookies)


def test_html_is_text_and_too_much_is_a_form_error(world: World, http: HttpClient) -> None:
    answer = paste(http, world, json.dumps(claims(sub="<script>alert(1)</script>")))
    assert "<script>alert(1)" not in answer.content.decode()
    assert "&lt;script&gt;alert(1)" in answer.content.decode()
    assert paste(http, world, "x" * (MAX_TEXT + 1)).status_code == 400
    assert paste(http, world, "a\x00b").status_code == 400
    assert paste(http, world, json.dumps(claims()), backend="99999").status_code == 400
    assert paste(http, world, "", backend="").status_code == 400
    form = f"claims=%ff%fe{{}}&backend={world.backend.pk}"
    raw = http.post(page(), form, content_type="application/x-www-form-urlencoded")
    assert raw.status_code == 200 and "token_malformed" in raw.content.decode()
    assert http.get("/admin/clients/issuer/99999/claims/").status_code == 404


def test_who_may_not_see_issuers_may_not_try_claims(world: World) -> None:
    assert member("ann", "clients.view_issuer").get(page()).status_code == 200
    stranger = member("bob", "clients.view_client")
    assert stranger.get(page()).status_code == 403
    assert paste(stranger, world, json.dumps(claims())).status_code == 403
    assert HttpClient().get(page()).status_code == 302
    strict = HttpClient(enforce_csrf_checks=True)
    strict.cookies = member("eve", "clients.view_issuer").cookies
    assert paste(strict, world, json.dumps(claims())).status_code == 403
