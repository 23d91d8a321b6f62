"""Security event tokens: what is taken and what is refused, with which code; what an event means, and for whom."""

import base64
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from clients import jwks
from clients.signals import events, sets
from clients.signals.events import Meaning, User
from clients.signals.sets import KeyUnknown, SetRefused, Transmitter
from tests.clients.keys import ISSUER, NOW, SigningKey, dump, signing_key, usual_claims

TRANSMITTER, AUDIENCE = "https://ssf.example/t1", "https://muniment.example/signals/okta"
CAEP = "https://schemas.openid.net/secevent/caep/event-type/"
RISC = "https://schemas.openid.net/secevent/risc/event-type/"
SSF = "https://schemas.openid.net/secevent/ssf/event-type/"
REVOKED = CAEP + "session-revoked"
ALICE = {"format": "iss_sub", "iss": ISSUER, "sub": "alice"}
HEADER = {"typ": "secevent+jwt"}
KEY = signing_key("ES256", "t1")
OTHER = signing_key("ES256", "t1", 1)


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a session-revoked event, changed; None removes one."""
    usual = {
        "iss": TRANSMITTER, "aud": AUDIENCE, "iat": int(NOW) - 2, "jti": "e1", "sub_id": ALICE,
        "events": {REVOKED: {"event_timestamp": int(NOW) - 10, "reason_admin": {"en": "stolen laptop"}}},
    }  # fmt: skip
    return {name: value for name, value in (usual | changes).items() if value is not None}


def event(header: dict[str, Any] | None = None, key: SigningKey = KEY, **changes: Any) -> str:
    return key.token(claims(**changes), HEADER | (header or {}))


def transmitter(*keys: SigningKey) -> Transmitter:
    return Transmitter(TRANSMITTER, AUDIENCE, jwks.parse({"keys": [key.jwk() for key in keys or (KEY,)]}))


def refused(token: str, of: Transmitter | None = None, now: float = NOW) -> tuple[str, str]:
    """The code and the words of a refusal."""
    with pytest.raises(SetRefused) as caught:
        sets.read(token, of or transmitter(), now)
    return caught.value.code, caught.value.detail


class TestATokenIsTaken:
    def test_with_all_that_it_says(self) -> None:
        read = sets.read(event(toe=5), transmitter(), NOW)
        assert (read.jti, read.issued_at, read.event, read.sub_id) == ("e1", NOW - 2, REVOKED, ALICE)
        assert read.payload["event_timestamp"] == NOW - 10 and read.happened_at == 5

    @pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES384", "EdDSA"])
    def test_signed_by_any_algorithm_with_two_keys(self, algorithm: str) -> None:
        key = signing_key(algorithm, "k")
        assert sets.read(event(key=key), transmitter(key), NOW).jti == "e1"

    @pytest.mark.parametrize(
        ("header", "changes"),
        [
            ({"typ": "SECEVENT+JWT"}, {}),
            ({"typ": "application/secevent+jwt"}, {}),
            ({"kid": None}, {}),
            ({}, {"aud": ["https://else.example", AUDIENCE]}),
            ({}, {"iat": int(NOW) + 59}),
            ({}, {"iat": NOW - sets.MAX_AGE + 1}),
            ({}, {"exp": int(NOW) + 1}),
            ({}, {"jti": "j" * 255}),
        ],
    )
    def test_in_every_form_that_the_standards_allow(self, header: dict[str, Any], changes: dict[str, Any]) -> None:
        assert sets.read(event(header, **changes), transmitter(), NOW).event == REVOKED


class TestATokenIsRefused:
    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"iss": "https://ssf.example/t2"}, "invalid_issuer"),
            ({"iss": None}, "invalid_issuer"),
            ({"iss": [TRANSMITTER]}, "invalid_issuer"),
            ({"aud": "https://else.example"}, "invalid_audience"),
            ({"aud": None}, "invalid_audience"),
            ({"aud": {AUDIENCE: 1}}, "invalid_audience"),
            ({"jti": None}, "invalid_request"),
            ({"jti": ""}, "invalid_request"),
            ({"jti": 7}, "invalid_request"),
            ({"jti": "j" * 256}, "invalid_request"),
            ({"jti": "a\x00b"}, "invalid_request"),
            ({"iat": None}, "invalid_request"),
            ({"iat": "now"}, "invalid_request"),
            ({"iat": True}, "invalid_request"),
            ({"iat": int(NOW) + 61}, "invalid_request"),
            ({"iat": NOW - sets.MAX_AGE - 1}, "invalid_request"),
            ({"iat": 1e300}, "invalid_request"),
            ({"exp": int(NOW) - 60}, "invalid_request"),
            ({"exp": "never"}, "invalid_request"),
            ({"events": None}, "invalid_request"),
            ({"events": {}}, "invalid_request"),
            ({"events": [REVOKED]}, "invalid_request"),
            ({"events": {REVOKED: {}, CAEP + "credential-change": {}}}, "invalid_request"),
            ({"events": {REVOKED: None}}, "invalid_request"),
            ({"events": {"": {}}}, "invalid_request"),
        ],
    )
    def test_for_what_it_says(self, changes: dict[str, Any], code: str) -> None:
        assert refused(event(**changes))[0] == code

    @pytest.mark.parametrize("kind", [None, "JWT", "at+jwt", "logout+jwt", 7, ["secevent+jwt"]])
    def test_where_its_type_is_not_that_of_an_event(self, kind: Any) -> None:
        assert refused(event({"typ": kind}))[0] == "invalid_request"

    def test_an_access_token_is_no_event(self) -> None:
        access = KEY.token(usual_claims(NOW) | {"iss": TRANSMITTER, "aud": AUDIENCE})
        assert refused(access)[0] == "invalid_request"
        dressed = KEY.token(usual_claims(NOW) | {"iss": TRANSMITTER, "aud": AUDIENCE, "jti": "a"}, HEADER)
        assert refused(dressed) == ("invalid_request", "events is not an object with exactly one event")

    def test_signed_by_nobody_or_by_another(self) -> None:
        signed, _, signature = event().rpartition(".")
        assert refused(f"{signed}.")[0] == "invalid_key"
        assert refused(event(key=OTHER)) == ("invalid_key", "the signature does not hold")
        body = signed.split(".")[1]
        other = event(jti="e2").split(".")
        assert refused(f"{other[0]}.{body}.{other[2]}")[0] == "invalid_key"
        assert refused(f"{signed}.{signature[:-4]}AAAA")[0] in ("invalid_key", "invalid_request")

    def test_unsecured_or_signed_with_the_public_key_as_a_secret(self) -> None:
        none = jwt.encode(claims(), "", algorithm="none", headers=HEADER)
        assert refused(none)[0] == "invalid_key"
        pem = KEY.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        part = [base64.urlsafe_b64encode(dump(one)).rstrip(b"=") for one in (HEADER | {"alg": "HS256"}, claims())]
        digest = hmac.digest(pem, b".".join(part), "sha256")
        forged = b".".join([*part, base64.urlsafe_b64encode(digest).rstrip(b"=")]).decode()
        assert refused(forged) == ("invalid_key", "the algorithm is not allowed for this issuer")

    def test_a_key_that_was_withdrawn_is_asked_for_and_a_key_in_the_token_is_not_read(self) -> None:
        with pytest.raises(KeyUnknown):
            sets.read(event(), transmitter(signing_key("ES256", "t2", 2)), NOW)
        with pytest.raises(KeyUnknown):
            sets.read(event({"jwk": KEY.jwk()}), Transmitter(TRANSMITTER, AUDIENCE, ()), NOW)
        with pytest.raises(KeyUnknown):
            sets.read(event(), Transmitter(TRANSMITTER, AUDIENCE, None), NOW)
        assert refused(event({"crit": ["exp"]}))[0] == "invalid_key"

    @pytest.mark.parametrize(
        "text",
        ["", ".", "..", "a.b.c", "é.é.é", "\x00", "{}", "e30.e30.", "e30.bm9uZQ.e30", "A" * 70_000, "a.b", " " * 9],
    )
    def test_no_token_at_all(self, text: str) -> None:
        assert refused(text)[0] == "invalid_request"

    def test_one_that_is_larger_than_an_access_token_may_be_is_taken_up_to_its_own_bound(self) -> None:
        assert sets.read(event(note="x" * 20_000), transmitter(), NOW).jti == "e1"
        assert refused(event(note="x" * 50_000))[0] == "invalid_request"

    def test_no_refusal_quotes_the_token(self) -> None:
        for changes in ({"iss": "secret-7"}, {"aud": "secret-7"}, {"jti": "secret-7\x07"}, {"iat": "secret-7"}):
            assert "secret-7" not in "".join(refused(event(**changes)))


def meant(kind: str = REVOKED, payload: dict[str, Any] | None = None, now: float = NOW, **changes: Any) -> Meaning:
    """What an event means."""
    token = event(**{"events": {kind: payload or {}}, **changes})
    return events.meaning(sets.read(token, transmitter(), NOW), ISSUER, now)


class TestWhatAnEventMeans:
    @pytest.mark.parametrize("uri", sorted(events.ENDING))
    def test_each_of_these_ends_what_came_before_it(self, uri: str) -> None:
        found = meant(uri, {"event_timestamp": int(NOW) - 10})
        assert (found.user, found.moment, found.why) == (User(sub="alice"), NOW - 10, None)
        assert found.name == uri.rpartition("/")[2]

    @pytest.mark.parametrize(
        ("uri", "name", "why"),
        [
            (SSF + "verification", "verification", "stream"),
            (SSF + "stream-updated", "stream-updated", "stream"),
            (CAEP + "device-compliance-change", None, "event_unknown"),
            (RISC + "account-enabled", None, "event_unknown"),
            ("https://evil.example/caep/event-type/session-revoked", None, "event_unknown"),
            (REVOKED + "/", None, "event_unknown"),
        ],
    )
    def test_others_end_nothing_and_say_why(self, uri: str, name: str | None, why: str) -> None:
        found = meant(uri)
        assert (found.user, found.name, found.why) == (None, name, why)

    @pytest.mark.parametrize(
        ("payload", "changes", "moment"),
        [
            ({}, {}, NOW + 100),
            ({"event_timestamp": 5}, {}, 5),
            ({"event_timestamp": 5.5}, {"toe": 9}, 5.5),
            ({}, {"toe": 9}, 9),
            ({"event_timestamp": NOW + 3600}, {}, NOW + 100),
            ({"event_timestamp": NOW + 150}, {}, NOW + 150),  # its clock, which dates the tokens too, is ahead
            ({"event_timestamp": NOW + 161}, {}, NOW + 100),
            ({"event_timestamp": NOW * 1000}, {}, NOW + 100),  # milliseconds, as some drafts had it
            ({"event_timestamp": "yesterday"}, {}, NOW + 100),
            ({"event_timestamp": -1}, {}, NOW + 100),
            ({"event_timestamp": True}, {}, NOW + 100),
        ],
    )
    def test_its_moment_is_its_own_but_no_time_to_come(
        self, payload: dict[str, Any], changes: dict[str, Any], moment: float
    ) -> None:
        assert meant(payload=payload, now=NOW + 100, **changes).moment == moment

    def test_reasons_are_kept_in_one_language_and_bounded(self) -> None:
        notes = meant(payload={"reason_admin": {"de": "Laptop weg"}, "reason": "x" * 900, "state": "a\x07b"}).notes
        assert notes == {"reason_admin": "Laptop weg", "reason": "x" * 500}


class TestWhoItIsAbout:
    @pytest.mark.parametrize(
        ("subject", "user"),
        [
            (ALICE, User(sub="alice")),
            ({"format": "email", "email": "Alice@Example.com"}, User(email="Alice@Example.com")),
            ({"format": "complex", "user": ALICE, "session": {"format": "opaque", "id": "s"}}, User(sub="alice")),
            ({"user": ALICE, "device": {"format": "opaque", "id": "d"}}, User(sub="alice")),
            (
                {"format": "aliases", "identifiers": [{"format": "email", "email": "a@b.example"}, ALICE]},
                User(sub="alice"),
            ),
            ({"format": "opaque", "id": "7"}, None),
            ({"format": "phone_number", "phone_number": "+12065550100"}, None),
            ({"format": "complex", "session": {"format": "opaque", "id": "s"}}, None),
            ({"format": "complex", "user": {"format": "complex", "user": ALICE}}, None),
            ({"format": "aliases", "identifiers": [{"format": "opaque", "id": "7"}]}, None),
        ],
    )
    def test_is_a_user_or_nobody_that_we_know_of(self, subject: Any, user: User | None) -> None:
        for found in (meant(sub_id=subject), meant(payload={"subject": subject}, sub_id=None)):
            assert found.user == user
            assert found.why == (None if user else "subject_unsupported")

    @pytest.mark.parametrize(
        "changes",
        [
            {"sub_id": None},
            {"sub_id": "alice"},
            {"sub_id": {}},
            {"sub_id": {"sub": "alice"}},
            {"sub_id": {"format": 7}},
            {"sub_id": ALICE | {"sub": ""}},
            {"sub_id": ALICE | {"sub": "a" * 256}},
            {"sub_id": ALICE | {"sub": "a\u202eb"}},
            {"sub_id": ALICE | {"sub": 7}},
            {"sub_id": {"format": "iss_sub", "sub": "alice"}},
            {"sub_id": {"format": "email"}},
            {"sub_id": {"format": "email", "email": "alice"}},
            {"sub_id": {"format": "email", "email": "a@" + "b" * 400}},
            {"sub_id": {"format": "aliases", "identifiers": "alice"}},
            {"sub_id": {"format": "aliases", "identifiers": [ALICE, ALICE | {"sub": "bob"}]}},
            {"sub_id": None, "sub": "alice"},
        ],
    )
    def test_who_is_named_badly_is_not_guessed(self, changes: dict[str, Any]) -> None:
        with pytest.raises(SetRefused) as caught:
            meant(**changes)
        assert caught.value.code == "invalid_request" and "alice" not in caught.value.detail

    def test_two_subjects_that_differ_are_refused_and_two_that_agree_are_one(self) -> None:
        assert meant(payload={"subject": ALICE}).user == User(sub="alice")
        with pytest.raises(SetRefused):
            meant(payload={"subject": ALICE | {"sub": "bob"}})

    def test_a_transmitter_speaks_of_its_own_issuers_users_alone(self) -> None:
        for subject in (ALICE | {"iss": "https://id.example"}, {"format": "complex", "user": ALICE | {"iss": "x"}}):
            with pytest.raises(SetRefused) as caught:
                meant(sub_id=subject)
            assert caught.value.code == "access_denied"


def test_whatever_a_payload_holds_is_refused_or_read() -> None:
    """Hostile JSON in every place of the claims raises SetRefused, and nothing else."""
    odd: list[Any] = [None, True, 0, -1, 1e308, "", "\ud800", "\x00", [], [[]], {}, {"format": []}, {"": {"": None}}]
    for name in ("iss", "aud", "iat", "exp", "jti", "events", "sub_id", "toe"):
        for value in odd:
            text = json.dumps(claims() | {name: value}).encode()
            try:
                read = sets.read(KEY.token(text, dump(HEADER | {"alg": "ES256", "kid": "t1"})), transmitter(), NOW)
                events.meaning(read, ISSUER, NOW)
            except SetRefused:
                pass
