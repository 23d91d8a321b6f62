"""What a proxy is answered: 200 with headers that say who it is, or a refusal that it understands.

nginx knows 401 and 403 alone, and makes a 500 of anything else; Envoy takes a 5xx for an outage of ours, which it can
be set to let pass. `X-Muniment-Status` always has the status that is meant."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from django.http import HttpResponse, JsonResponse

from audit.reasons import REASONS
from governance.answers import challenge_like
from governance.problems import Problem

Answer = dict[str, Any]
Found = tuple[list[Answer], list[str], str]
# Each is in every answer, empty where there is nothing, so that a proxy overwrites what a client sent.
NOBODY: Mapping[str, str] = {
    f"X-Muniment-{name}": "" for name in ("Uid", "Client", "Tool", "Scopes", "Record", "Tenant", "Assertion")
}
MOST_SCOPES = 2048  # characters in a header: proxies have buffers of 4 KiB for all of them


def of(proxy: str | None, found: list[Answer], required: list[str], audience: str) -> HttpResponse:
    """The answer, from those for each tool: who it is, if all are allowed; else the first denial, one that more scopes
    would not help before one that they would, and one that time helps last. `required` are the scopes of all tools
    together."""
    denials = [one for one in found if one["decision"] == "deny"]
    if not denials:
        fresh = {"DPoP-Nonce": found[0]["dpop_nonce"]} if "dpop_nonce" in found[0] else {}
        return HttpResponse(status=200, headers=_headers(200) | _identity(found) | fresh)
    chosen = min(denials, key=_hopeful)
    headers = {}
    if "www_authenticate" in chosen:
        headers["WWW-Authenticate"] = challenge_like(chosen["www_authenticate"], chosen["reason"], required, audience)
    if "dpop_nonce" in chosen:
        headers["DPoP-Nonce"] = chosen["dpop_nonce"]
    if "retry_after" in chosen:
        headers["Retry-After"] = str(chosen["retry_after"])
    reason = REASONS[chosen["reason"]]
    denied = Problem(reason.status, "denied", reason.title, reason.sentence, reason=reason.code, headers=headers)
    return _refusal(denied, 403 if proxy == "envoy" and reason.status >= 500 else _understood(proxy, reason.status))


def _hopeful(denial: Answer) -> tuple[int, int]:
    """Of what would help, the least first; of waits, the longest."""
    order = {"request_scope": 1, "retry_later": 2}
    return order.get(denial["remedy"], 0), -denial.get("retry_after", 0)


def failed(proxy: str | None, problem: Problem) -> HttpResponse:
    """The answer where nothing was decided."""
    problem = not_known() if problem.kind == "not-authenticated" else problem
    return _refusal(problem, _understood(proxy, problem.status))


def not_known() -> Problem:
    """The key in X-Muniment-Key is none. No 401: that would send the user, whose fault it is not, to sign in."""
    return Problem(403, "proxy-not-authenticated", "The proxy is not authenticated", "Send a valid X-Muniment-Key.")


def _understood(proxy: str | None, status: int) -> int:
    return 403 if proxy in (None, "nginx") and status not in (401, 403) else status


def _refusal(problem: Problem, status: int) -> JsonResponse:
    response = problem.response()
    response.status_code = status
    for name, value in _headers(problem.status).items():
        response.headers[name] = value
    return response


def _headers(status: int) -> dict[str, str]:
    return {"Cache-Control": "no-store", "X-Muniment-Status": str(status), **NOBODY}


def _identity(found: list[Answer]) -> dict[str, str]:
    """The headers of an allow. Of several tools all are named, and all records, in one order; then there is no
    assertion, since that is about one tool. What is not ASCII in a tenant is percent-encoded."""
    subject, alone = found[0]["subject"], len(found) == 1
    values = {
        "Uid": subject["uid"],
        "Client": found[0]["client"]["slug"],
        "Tool": " ".join(one["tool"]["name"] for one in found),
        "Scopes": _scopes(found),
        "Record": " ".join(one["record"] for one in found),
        "Tenant": quote(subject["tenant"] or "", safe=""),
        "Assertion": (found[0].get("assertion") or "") if alone else "",
    }
    return {f"X-Muniment-{name}": value for name, value in values.items()}


def _scopes(found: list[Answer]) -> str:
    """The effective scopes that all tools have in common; of very many, those that the tools need."""
    common = [s for s in found[0]["scopes"]["effective"] if all(s in one["scopes"]["effective"] for one in found)]
    if len(text := " ".join(common)) <= MOST_SCOPES:
        return text
    needed = {scope for one in found for scope in one["scopes"]["required"]}
    return " ".join(scope for scope in common if scope in needed)
