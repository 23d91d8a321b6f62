"""What the decision would be: the same `decide()` as for calls, asked without a token. For the access matrix, the
explainer and the preview of a grant."""

import time
from collections.abc import Iterable
from dataclasses import replace

from governance.decision import Decision, GrantPolicy, Policy, Question, SubjectState, decide

ANYBODY = ""  # a subject that no grant names


def answer(
    policy: Policy,
    client_id: int,
    backend_id: int,
    tool: str,
    *,
    subject: str = ANYBODY,
    state: SubjectState | None = None,
    tenant: str | None = None,
    roles: Iterable[str] = (),
    scopes: Iterable[str] | None = None,
    mode: str = "interactive",
    agent_scopes: Iterable[str] | None = None,
    now: float | None = None,
    explain: bool = False,
) -> Decision:
    """What a call of this tool through this client would be answered, if its token is genuine (rows 9 to 15 of the
    decision). `client_id` and `backend_id` are ids of rows; `scopes` are the token's, None: the user consented to all
    that the tool needs; `now` is POSIX seconds. A client without an OAuth client id is `client_unknown`."""
    found = next((pair for pair, client in policy.clients.items() if client.id == client_id), None)
    known = policy.tools.get((backend_id, tool))
    carried = tuple(known.scopes if known else ()) if scopes is None else tuple(scopes)
    moment = time.time() if now is None else now
    question = Question(
        backend_id=backend_id,
        tool=tool,
        issuer=found[0] if found else "",
        client_id=found[1] if found else None,
        subject=subject,
        tenant=tenant,
        roles=frozenset(roles),
        token_scopes=carried,
        issued_at=moment,
        mode=mode,
        agent_scopes=None if agent_scopes is None else tuple(agent_scopes),
    )
    return decide(policy, question, state or SubjectState(), moment, explain)


def with_grant(policy: Policy, grant: GrantPolicy) -> Policy:
    """The policy with one more grant, or with another in the place of the one of the same id."""
    others = {
        client: tuple(one for one in grants if one.id != grant.id) for client, grants in policy.grants_of_client.items()
    }
    others[grant.client_id] = (*others.get(grant.client_id, ()), grant)
    return replace(policy, grants_of_client=others)


def without_grant(policy: Policy, number: int) -> Policy:
    """The policy without the grant of this id."""
    kept = {
        client: tuple(one for one in grants if one.id != number) for client, grants in policy.grants_of_client.items()
    }
    return replace(policy, grants_of_client=kept)
