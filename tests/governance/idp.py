"""An identity provider on loopback, for tests: discovery, keys, a page to sign in on, PKCE, one-time codes. It is
honest until a test bends what it says: `claims`, `header`, `sign`, `discovery`, `jwks`, `answers`."""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

CLIENT_ID, SECRET = "muniment-tests", "s3cret with space&="
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()

Answer = tuple[int, dict[str, str], bytes]


def b64(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def public(private: Any, **members: Any) -> dict[str, Any]:
    """A key as a JWKS has it."""
    algorithm: Any = {
        "RSAPrivateKey": jwt.algorithms.RSAAlgorithm,
        "EllipticCurvePrivateKey": jwt.algorithms.ECAlgorithm,
    }
    kind = "RSAPrivateKey" if isinstance(private, rsa.RSAPrivateKey) else "EllipticCurvePrivateKey"
    maker = jwt.algorithms.OKPAlgorithm if isinstance(private, ed25519.Ed25519PrivateKey) else algorithm[kind]
    found: dict[str, Any] = json.loads(maker.to_jwk(private.public_key()))
    return found | {"use": "sig"} | members


def signed(private: Any, alg: str) -> Callable[[dict[str, Any], dict[str, Any]], str]:
    """How to sign with a key: (header, claims) -> token."""
    algorithm = jwt.get_algorithm_by_name(alg)
    return lambda header, claims: raw(
        {"typ": "JWT", "alg": alg} | header, claims, lambda text: algorithm.sign(text, private)
    )


def raw(header: dict[str, Any], claims: Any, mac: Callable[[bytes], bytes] = lambda _: b"") -> str:
    """A token with any header at all; `mac` makes the signature."""
    body = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    text = f"{b64(json.dumps(header).encode())}.{b64(body)}"
    return f"{text}.{b64(mac(text.encode()))}"


@dataclass
class Idp:
    """What the provider knows, and how it is bent."""

    port: int = 0
    people: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)  # over the honest ones; None takes one away
    header: dict[str, Any] = field(default_factory=lambda: {"kid": "k1"})
    sign: Callable[[dict[str, Any], dict[str, Any]], str] = field(default_factory=lambda: signed(RSA, "RS256"))
    discovery: dict[str, Any] = field(default_factory=dict)
    jwks: dict[str, Any] = field(default_factory=lambda: {"keys": [public(RSA, kid="k1", alg="RS256")]})
    answers: dict[str, Callable[[], Answer]] = field(default_factory=dict)  # by path, instead of the honest one
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    codes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def authorize(self, location: str, sub: str = "u-1", **more: Any) -> str:
        """What the person's browser does after signing in there: the path of the callback, with the code."""
        question = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
        code = secrets.token_urlsafe(12)
        self.codes[code] = question | {"sub": sub, "auth_time": int(time.time()), **more}
        callback = urlsplit(question["redirect_uri"])
        return f"{callback.path}?{urlencode({'code': code, 'state': question['state']})}"

    def answer(self, method: str, target: str, form: dict[str, str], authorization: str) -> Answer:
        """One request."""
        path = urlsplit(target).path
        self.asked.append((path, form))
        if path in self.answers:
            return self.answers[path]()
        match (method, path):
            case ("GET", "/.well-known/openid-configuration"):
                return as_json(self._discovery())
            case ("GET", "/jwks"):
                return as_json(self.jwks)
            case ("GET", "/authorize"):
                return self._page(target)
            case ("POST", "/authorize"):
                return 302, {"Location": self._back(target, form["sub"])}, b""
            case ("POST", "/token"):
                return self._token(form, authorization)
        return (204 if path == "/favicon.ico" else 404), {}, b""

    def _discovery(self) -> dict[str, Any]:
        document = {
            "issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token", "jwks_uri": f"{self.issuer}/jwks",
        } | self.discovery  # fmt: skip
        return {name: value for name, value in document.items() if value is not None}

    def _page(self, target: str) -> Answer:
        people = "".join(f'<p><button name="sub" value="{escape(s)}">{escape(s)}</button></p>' for s in self.people)
        page = (
            f'<!doctype html><title>Sign in</title><h1>Who are you?</h1><form method="post" action="{escape(target)}">'
        )
        return 200, {"Content-Type": "text/html"}, f"{page}{people}</form>".encode()

    def _back(self, target: str, sub: str) -> str:
        uri = parse_qs(urlsplit(target).query)["redirect_uri"][0]
        return f"{urlsplit(uri).scheme}://{urlsplit(uri).netloc}{self.authorize(target, sub)}"

    def _token(self, form: dict[str, str], authorization: str) -> Answer:
        kept = self.codes.pop(form.get("code", ""), None)
        pair = base64.b64decode(authorization.removeprefix("Basic ")).decode().split(":")
        known = [unquote_plus(part) for part in pair] == [CLIENT_ID, SECRET]
        challenge = b64(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if kept is None or not known or kept["code_challenge"] != challenge or kept["code_challenge_method"] != "S256":
            return as_json({"error": "invalid_grant"}, 400)
        if (form["redirect_uri"], form["grant_type"]) != (kept["redirect_uri"], "authorization_code"):
            return as_json({"error": "invalid_grant"}, 400)
        return as_json({"access_token": "at", "token_type": "Bearer", "id_token": self.id_token(kept)})

    def id_token(self, kept: dict[str, Any]) -> str:
        """The ID token of a code."""
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": CLIENT_ID, "sub": kept["sub"], "iat": now, "exp": now + 300,
            "nonce": kept["nonce"], "auth_time": kept["auth_time"], **self.people.get(kept["sub"], {}), **self.claims,
        }  # fmt: skip
        return self.sign(self.header, {name: value for name, value in claims.items() if value is not None})


def as_json(document: Any, status: int = 200) -> Answer:
    """A JSON answer."""
    return status, {"Content-Type": "application/json"}, json.dumps(document).encode()


@contextmanager
def running() -> Iterator[Idp]:
    """A provider on a port of loopback."""
    idp = Idp()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            status, headers, content = idp.answer(
                self.command, self.path, form, self.headers.get("Authorization", "Basic Og==")
            )
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = reply

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    idp.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield idp
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


def configure(settings: Any, issuer: str) -> None:
    """Staff sign in there; groups and roles as in the documentation."""
    settings.MUNIMENT_OIDC_ISSUER, settings.MUNIMENT_OIDC_CLIENT_ID = issuer, CLIENT_ID
    settings.MUNIMENT_OIDC_CLIENT_SECRET = SECRET
    settings.MUNIMENT_OIDC_ROLES = {
        "compliance": frozenset({"Auditor"}), "granters": frozenset({"Access manager"}),
        "admins": frozenset({"Administrator"}),
    }  # fmt: skip
