"""Bound tokens where they are shown in another way than by a call: to a proxy's forward auth, and to introspection."""

import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from audit.models import Record
from clients.models import Issuer, IssuerBinding
from muniment.adapters.http import thumbprint
from tests.clients.proving import Holder, certificate, holder, in_hex
from tests.world import World, build, token
from tools.models import Route, Tool

ORIGIN = "https://inner.example"
ALICE, MALLORY = holder(), holder(number=1)
PEM = certificate()
MINE = thumbprint(PEM)


@pytest.fixture
def world(db: None) -> World:
    made = build()
    Route.objects.create(backend=made.backend, path="/memories/*", methods=["GET"], tools=["memory.recall"])
    Route.objects.create(backend=made.backend, path="/mcp", methods=[], tools=["memory.recall", "memory.capture"])
    made.grant.scopes.add(Tool.objects.get(name="memory.capture").scopes.get())
    return made


def bound(**claims: Any) -> str:
    return token(**{"cnf": {"jkt": ALICE.jkt}} | claims)


class TestForwardAuth:
    def ask(
        self, world: World, text: str, uri: str = "/memories/7?q=x", method: str = "GET", scheme: str = "DPoP",
        proxy: str = "nginx", **more: str,
    ) -> Any:  # fmt: skip
        headers = {
            "X-Muniment-Proxy": proxy, "X-Muniment-Key": world.key, "X-Original-Method": method,
            "X-Original-URI": uri, "Authorization": f"{scheme} {text}",
        }  # fmt: skip
        return world.http.get("/v1/forward-auth", headers=headers | more)

    def proof(self, text: str, uri: str = "/memories/7", method: str = "GET", who: Holder = ALICE, **more: Any) -> Any:
        return {"DPoP": who.proof(text, method, ORIGIN + uri, **more)}

    def test_a_proof_of_the_original_request_serves_it_once(self, world: World) -> None:
        text = bound()
        proof = self.proof(text)
        assert self.ask(world, text, **proof).status_code == 200
        again = self.ask(world, text, **proof)
        assert again.status_code == 401 and json.loads(again.content)["reason"] == "proof_invalid"
        assert again.headers["WWW-Authenticate"].startswith('DPoP error="invalid_dpop_proof", ')
        assert 'scope="memory:read"' in again.headers["WWW-Authenticate"]

    def test_one_proof_serves_all_tools_of_the_route(self, world: World) -> None:
        text = bound()
        response = self.ask(world, text, "/mcp", "POST", **self.proof(text, "/mcp", "POST"))
        assert response.status_code == 200 and response.headers["X-Muniment-Tool"] == "memory.recall memory.capture"
        refused = self.ask(world, text, "/mcp", "POST", **self.proof(text, "/mcp", "GET"))
        assert refused.status_code == 401
        assert 'scope="memory:read memory:write"' in refused.headers["WWW-Authenticate"]

    def test_a_bound_token_needs_it(self, world: World) -> None:
        text = bound()
        wrong = [
            {"who": MALLORY}, {"htm": "POST"}, {"htu": "https://evil.example/memories/7"},
            {"htu": f"{ORIGIN}/v1/forward-auth"},
        ]  # fmt: skip
        asked = [("Bearer", self.proof(text), "proof_required"), ("DPoP", {}, "proof_required")]
        asked += [("DPoP", self.proof(text, **how), "proof_invalid") for how in wrong]
        for scheme, more, reason in asked:
            response = self.ask(world, text, scheme=scheme, **more)
            assert (response.status_code, json.loads(response.content)["reason"]) == (401, reason), more

    def test_a_client_is_given_a_nonce(self, world: World) -> None:
        IssuerBinding.objects.create(issuer=Issuer.objects.get(), require="", dpop_nonce=True)
        text = bound()
        first = self.ask(world, text, **self.proof(text))
        assert first.status_code == 401 and 'error="use_dpop_nonce"' in first.headers["WWW-Authenticate"]
        nonce = first.headers["DPoP-Nonce"]
        assert self.ask(world, text, **self.proof(text, nonce=nonce)).status_code == 200

    def test_the_proxy_says_which_certificate_it_was_and_nobody_else(self, world: World) -> None:
        text = token(cnf={"x5t#S256": MINE})
        for shown in (quote(PEM), in_hex(PEM)):
            assert self.ask(world, text, scheme="Bearer", proxy=f"nginx; certificate={shown}").status_code == 200
            both = f'nginx; certificate={shown}; assertion="https://db.example"'
            assert self.ask(world, text, scheme="Bearer", proxy=both).headers["X-Muniment-Assertion"]
            for proxy in ("nginx", "nginx; certificate=", f"nginx; certificate={'00' * 32}"):
                spoofed = {"X-Muniment-Certificate": shown, "X-Client-Cert": shown}
                assert self.ask(world, text, scheme="Bearer", proxy=proxy, **spoofed).status_code == 401
        # What Caddy says where the client showed none.
        nothing = "caddy; certificate={http.request.tls.client.fingerprint}"
        caddy = {"X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/memories/7?q=x"}
        assert self.ask(world, token(), scheme="Bearer", proxy=nothing, **caddy).status_code == 200
        assert self.ask(world, text, scheme="Bearer", proxy=nothing, **caddy).status_code == 401

    def test_a_proxy_that_says_it_wrongly_is_not_set_up(self, world: World) -> None:
        for more in ("certificate=x", "cert=x", "certificate=; certificate="):
            assert self.ask(world, token(), scheme="Bearer", proxy=f"nginx; {more}").status_code == 403
        assert self.ask(world, token(), scheme="Bearer", proxy="nginx; certificate").status_code == 200, (
            "there was none"
        )


class TestIntrospection:
    def look(self, world: World, text: str, **more: str) -> dict[str, Any]:
        response = world.http.post(
            "/v1/introspect", urlencode({"token": text} | more), content_type="application/x-www-form-urlencoded",
            headers={"Authorization": f"Bearer {world.key}"},
        )  # fmt: skip
        assert response.status_code == 200, response.content
        found: dict[str, Any] = response.json()
        return found

    def proof(self, text: str, who: Holder = ALICE, **more: Any) -> dict[str, str]:
        url = f"{ORIGIN}/mcp"
        return {"dpop_proof": who.proof(text, "POST", url, **more), "dpop_method": "POST", "dpop_url": url}

    def test_a_bound_token_alone_is_good_for_nothing(self, world: World) -> None:
        """Who asks may know nothing of `cnf`, and would take a stolen token for a good one."""
        assert self.look(world, bound()) == {"active": False}
        assert Record.objects.get(type="introspection").reason == "proof_required"

    def test_with_its_proof_it_is_active_and_says_what_it_is_bound_to(self, world: World) -> None:
        text = bound()
        proof = self.proof(text)
        found = self.look(world, text, **proof)
        assert (found["active"], found["token_type"], found["cnf"]) == (True, "DPoP", {"jkt": ALICE.jkt})
        assert self.look(world, text, **proof) == {"active": False, "dpop_error": "invalid_dpop_proof"}

    def test_a_request_that_is_looked_at_and_then_called_uses_one_proof(self, world: World) -> None:
        text, name = bound(), {"dpop_request": "a-request-of-alice"}
        proof = self.proof(text)
        assert self.look(world, text, **proof, **name)["active"]
        call = {n.removeprefix("dpop_"): value for n, value in (proof | name).items()}
        assert world.verify(token=text, dpop=call)["decision"] == "allow"

    def test_a_wrong_proof_says_how_to_make_the_next_one(self, world: World) -> None:
        IssuerBinding.objects.create(issuer=Issuer.objects.get(), require="", dpop_nonce=True)
        text = bound()
        first = self.look(world, text, **self.proof(text))
        assert (first["active"], first["dpop_error"]) == (False, "use_dpop_nonce")
        assert self.look(world, text, **self.proof(text, nonce=first["dpop_nonce"]))["active"]
        assert self.look(world, text, **self.proof(text, MALLORY))["dpop_error"] == "invalid_token"

    def test_a_certificate_is_said_as_well(self, world: World) -> None:
        text = token(cnf={"x5t#S256": MINE})
        found = self.look(world, text, **{"x5t#S256": MINE or ""})
        assert (found["token_type"], found["cnf"]) == ("Bearer", {"x5t#S256": MINE})
        assert self.look(world, text) == {"active": False}

    def test_of_a_token_that_is_not_bound_nothing_changes(self, world: World) -> None:
        found = self.look(world, token())
        assert found["token_type"] == "Bearer" and "cnf" not in found

    def test_half_a_proof_is_a_400(self, world: World) -> None:
        for more in ({"dpop_proof": "x"}, {"dpop_method": "GET"}, {"x5t#S256": "short"}):
            response = world.http.post(
                "/v1/introspect", urlencode({"token": token()} | more),
                content_type="application/x-www-form-urlencoded", headers={"Authorization": f"Bearer {world.key}"},
            )  # fmt: skip
            assert response.status_code == 400 and "dpop_proof" in response.json()["detail"]
