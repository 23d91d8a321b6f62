"""Rows 1-3: what is a token at all, and whose."""

import json

import pytest

from clients.tokens import Refused, UnknownKey, identify
from tests.clients.keys import AUDIENCE, ISSUER, NOW, b64, dump, policy, signing_key, usual_claims

KEY = signing_key()
ISSUERS = policy(KEY.jwk())
AUDIENCES = frozenset({AUDIENCE})


def refusal(token: object, issuers: object = None) -> str:
    with pytest.raises(Refused) as caught:
        identify(token, ISSUERS if issuers is None else issuers, AUDIENCES, NOW)  # type: ignore[arg-type]
    return caught.value.reason


def raw(header: bytes, payload: bytes) -> str:
    """A token of these very bytes, rightly signed."""
    return KEY.token(payload, header)


HEADER = dump({"alg": "ES256", "kid": "k1"})
CLAIMS = json.dumps(usual_claims()).encode()


def test_an_ordinary_token_is_accepted_and_read() -> None:
    identity = identify(KEY.token(), ISSUERS, AUDIENCES, NOW)
    assert (identity.issuer, identity.sub, identity.client_id) == (ISSUER, "alice", "claude-app")
    assert (identity.scopes, identity.audience) == (("memory:read",), (AUDIENCE,))
    assert (identity.issued_at, identity.expires_at, identity.jti) == (int(NOW), int(NOW) + 300, "t-1")
    assert identify(raw(HEADER, CLAIMS), ISSUERS, AUDIENCES, NOW).sub == "alice"


@pytest.mark.parametrize("token", [None, ""])
def test_no_token_is_missing(token: str | None) -> None:
    assert refusal(token) == "token_missing"


@pytest.mark.parametrize("token", [b"a.b.c", 5, ["a.b.c"], {"token": 1}, True])
def test_what_is_no_text_is_malformed(token: object) -> None:
    assert refusal(token) == "token_malformed"


def test_a_token_of_16_kib_is_read_and_one_character_more_is_not() -> None:
    def padded(size: int) -> str:
        return KEY.token(pad="x" * size)

    size = 11_000
    while len(padded(size + 1)) <= 16 * 1024:
        size += 1
    assert identify(padded(size), ISSUERS, AUDIENCES, NOW).sub == "alice"
    assert refusal(padded(size + 1)) == "token_malformed"
    assert refusal("a" * 10_000_000) == "token_malformed"


@pytest.mark.parametrize("parts", [1, 2, 4, 5, 6])
def test_only_three_parts_are_a_token(parts: int) -> None:
    assert refusal(".".join((KEY.token() + ".e30.e30.e30").split(".")[:parts])) == "token_malformed"


def test_an_encrypted_token_is_malformed() -> None:
    header = b64(dump({"alg": "RSA-OAEP", "enc": "A256GCM"}))
    assert refusal(f"{header}.a2V5.aXY.dGV4dA.dGFn") == "token_malformed"
    # A three-part token that says it is encrypted is not taken for a signed one.
    assert refusal(KEY.token(header={"enc": "A256GCM"})) == "token_invalid"


@pytest.mark.parametrize("space", [" ", "\n", "\t", "\r\n", "\u00a0", "\0", "\ufeff"])
def test_white_space_around_or_inside_a_token_is_refused(space: str) -> None:
    token = KEY.token()
    head, rest = token.split(".", 1)
    for changed in (space + token, token + space, f"{head}{space}.{rest}", f"{head}.{space}{rest}"):
        assert refusal(changed) == "token_malformed"


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("tail", ["=", "==", "+", "/", "%3D", "é", "*"])
def test_padding_and_characters_outside_base64url_are_refused(part: int, tail: str) -> None:
    parts = KEY.token().split(".")
    parts[part] += tail
    assert refusal(".".join(parts)) == "token_malformed"


def test_a_second_spelling_of_the_same_bytes_is_refused() -> None:
    token = KEY.token()  # 64 bytes of signature are 86 characters, of which the last has four unused bits
    assert token[-1] in "AQgw"
    twin = token[:-1] + chr(ord(token[-1]) + 1)
    assert refusal(twin) == "token_malformed"


def test_a_part_of_an_impossible_length_is_refused() -> None:
    head, payload, signature = KEY.token().split(".")
    assert refusal(f"{head}.{payload}.AAAAA") == "token_malformed"
    assert refusal(f"{head}.A.{signature}") == "token_malformed"
    assert refusal(f".{payload}.{signature}") == "token_malformed"
    assert refusal(f"{head}..{signature}") == "token_malformed"


@pytest.mark.parametrize("payload", [b"null", b"[]", b'"alice"', b"5", b"true", b"", b"{", b"{} {}", b"\xff{}"])
def test_a_payload_that_is_no_object_is_malformed(payload: bytes) -> None:
    assert refusal(raw(HEADER, payload)) == "token_malformed"


@pytest.mark.parametrize("header", [b"null", b"[]", b'"ES256"', b"{", b"{}", b'{"alg":null}', b'{"alg":["ES256"]}'])
def test_a_header_that_is_no_object_or_names_no_algorithm_is_malformed(header: bytes) -> None:
    assert refusal(raw(header, CLAIMS)) == "token_malformed"


@pytest.mark.parametrize(
    "encoded",
    [CLAIMS.decode().encode("utf-16"), CLAIMS.decode().encode("utf-32-le"), b"\xef\xbb\xbf" + CLAIMS],
)
def test_json_that_is_not_plain_utf_8_is_malformed(encoded: bytes) -> None:
    assert refusal(raw(HEADER, encoded)) == "token_malformed"


@pytest.mark.parametrize("again", [b'"sub":"bob"', b'"sub":"alice"', rb'"\u0073ub":"bob"', b'"x":{"y":1,"y":2}'])
def test_duplicate_members_in_the_payload_are_refused(again: bytes) -> None:
    assert refusal(raw(HEADER, CLAIMS[:-1] + b"," + again + b"}")) == "token_malformed"
    assert identify(raw(HEADER, CLAIMS[:-1] + b',"Sub":"bob"}'), ISSUERS, AUDIENCES, NOW).sub == "alice"


@pytest.mark.parametrize("again", [b'"alg":"none"', b'"alg":"ES256"', rb'"\u0061lg":"HS256"', b'"kid":"k2"'])
def test_duplicate_members_in_the_header_are_refused(again: bytes) -> None:
    assert refusal(raw(HEADER[:-1] + b"," + again + b"}", CLAIMS)) == "token_malformed"


def test_deep_nesting_is_refused_wherever_it_stands() -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        deep = opening * 1800 + b"1" + closing * 1800
        assert refusal(raw(HEADER, CLAIMS[:-1] + b',"x":' + deep + b"}")) == "token_malformed"
        assert refusal(raw(HEADER[:-1] + b',"x":' + deep + b"}", CLAIMS)) == "token_malformed"
    assert refusal(raw(HEADER, b"[" * 11_000)) == "token_malformed"


def test_a_number_of_thousands_of_digits_is_refused_and_one_of_hundreds_is_read() -> None:
    assert refusal(raw(HEADER, CLAIMS[:-1] + b',"x":' + b"9" * 9_000 + b"}")) == "token_malformed"
    wide = CLAIMS[:-1] + b',"x":' + b"9" * 400 + b"}"
    assert identify(raw(HEADER, wide), ISSUERS, AUDIENCES, NOW).sub == "alice"


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_numbers_that_json_has_not_are_refused(constant: bytes) -> None:
    assert refusal(raw(HEADER, CLAIMS[:-1] + b',"x":' + constant + b"}")) == "token_malformed"


@pytest.mark.parametrize(
    "iss",
    [
        None,
        [ISSUER],
        {"iss": ISSUER},
        5,
        True,
        "",
        ISSUER + "/",
        ISSUER[:-1],
        ISSUER.upper(),
        ISSUER + " ",
        " " + ISSUER,
        "http://id.example/",
        "https://ID.example/",
        "https://id.example:443/",
        ISSUER + "\0",
        "\ud800",
    ],
)
def test_an_issuer_must_be_the_very_string(iss: object) -> None:
    assert refusal(KEY.token(iss=iss)) == "issuer_unknown"


def test_an_issuer_whose_keys_cannot_be_had_is_an_outage_and_no_forgery() -> None:
    with pytest.raises(UnknownKey) as caught:  # so that the caller may try to fetch them
        identify(KEY.token(), policy(fetched=False), AUDIENCES, NOW)
    assert (caught.value.reason, caught.value.issuer_id) == ("issuer_unavailable", 7)
    assert refusal(KEY.token()[:-4] + "AAAA", policy(KEY.jwk(), fetched=False)) == "issuer_unavailable"


def test_a_token_of_one_issuer_is_not_verified_with_the_keys_of_another() -> None:
    other = signing_key(number=1)
    issuers = policy(KEY.jwk()) | policy(other.jwk(), issuer="https://other.example/", id=8)
    assert identify(KEY.token(), issuers, AUDIENCES, NOW).issuer == ISSUER
    assert refusal(other.token(), issuers) == "token_invalid"
    assert refusal(KEY.token(iss="https://other.example/"), issuers) == "token_invalid"


def test_a_refusal_quotes_nothing_of_the_token() -> None:
    marker = "s3cret-marker"
    tokens = [
        KEY.token(iss=marker),
        KEY.token(sub=[marker]),
        KEY.token(aud=marker),
        KEY.token(exp=marker),
        KEY.token(scope={marker: 1}),
        KEY.token(header={"typ": marker}),
        KEY.token(header={"kid": marker}),
        KEY.token(header={"alg": marker}),
        KEY.token(act=marker),
        marker,
    ]
    for token in tokens:
        with pytest.raises(Refused) as caught:
            identify(token, ISSUERS, AUDIENCES, NOW)
        assert marker not in str(caught.value) + caught.value.detail
        assert caught.value.__cause__ is None
