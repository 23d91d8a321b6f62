"""Who may do this, with what, and what may be done: the searches of AuthZEN (section 8), for backends that may search.

A search decides one question after another, in the order of names, and as many as one page may take: a page may be
short, even empty, although more follows; it ends where there is no token for the next. Searched are the users whom the
platform has met at an issuer that the backend accepts, and the tools and resources that the policy names. What is found
is no permission: whoever relies on it asks again."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from django.conf import settings

from audit import subjects, tenants
from audit.entries import Entry, Receipt
from audit.models import Subject
from audit.protection import KeyDestroyed
from audit.recording import Stale, SubjectChanged, Unavailable
from governance import authzen_contract as contract
from governance import authzen_mapping as mapping
from governance.authzen_contract import ActionSearch, AskedAction, AskedResource, ResourceSearch, Search, SubjectSearch
from governance.authzen_evaluation import Asker, about, base, changed, decided, question_entry
from governance.authzen_mapping import TOOL, Who
from governance.decision import ClientPolicy
from governance.problems import Problem
from governance.process import recorder
from governance.snapshot import BackendPolicy, Snapshot, snapshots
from governance.verification import ATTEMPTS, UNTOUCHED, State, authenticate
from tools.credentials import Credential

MOST, USUAL = 100, 50  # results of a page
LOOKED = 1000  # questions that are decided for one page
NOBODY = Who()
T = TypeVar("T")


@dataclass(slots=True)
class Page:
    """What was found: entities as the API answers them, the name after which the next page begins (None: there is no
    more) and the token that leads there, and how many questions were decided for it."""

    results: list[dict[str, str]] = field(default_factory=list)
    after: str | None = None
    token: str = ""
    looked: int = 0


@dataclass(frozen=True, slots=True)
class Asking:
    """A search under one policy."""

    snapshot: Snapshot
    backend: BackendPolicy
    asked: Search
    after: str
    state: State = UNTOUCHED

    @property
    def most(self) -> int:
        """How many results the page may have."""
        wish = self.asked.page.limit
        return USUAL if wish is None else min(wish, MOST)


def permitted(credential: Credential) -> tuple[Snapshot, BackendPolicy]:
    """The backend that asks. Raises NotAuthenticated, and a 403 Problem for one that may not search."""
    snapshot, backend = authenticate(credential)
    if not backend.may_search:
        raise Problem(
            403, "search-not-allowed", "This backend may not search",
            "Evaluations need no permission; searches need `may_search`, which staff give to the backend.",
        )  # fmt: skip
    return snapshot, backend


def search(asker: Asker, asked: Search) -> tuple[Page, Receipt, Snapshot]:
    """What is found, the record of the search, and the policy that it was made under.

    Raises a Problem for a backend that may not search and for a token that is not of this search; NotAuthenticated,
    QueueFull or Unavailable, when nothing may be answered."""
    state = UNTOUCHED
    for _ in range(ATTEMPTS):
        snapshot, backend = permitted(asker.credential)
        asking = Asking(snapshot, backend, asked, start_of(backend, asked), state)
        who, page, entry = _made(asker, asking)
        [result] = recorder().record([entry])
        match result:
            case Receipt():
                if page.after is not None:
                    page.token = contract.page_token(contract.bound(backend.slug, asked), page.after)
                return page, result, snapshot
            case SubjectChanged():
                state = changed(who, result.state)
            case Stale():
                pass
            case _:
                raise Unavailable("the search could not be recorded") from result
        snapshots.at_head()
    raise Unavailable("the policy kept changing")


def start_of(backend: BackendPolicy, asked: Search) -> str:
    """The name after which the page begins; empty for the first page. Raises a 400 Problem."""
    if not asked.page.token:
        return ""
    after = contract.page_after(contract.bound(backend.slug, asked), asked.page.token)
    if after is None:
        detail = "`page.token`: take it as it was given, and ask the same again with it."
        raise Problem(400, "invalid-page-token", "The page's token is not of this search", detail)
    return after


def _made(asker: Asker, asking: Asking) -> tuple[Who, Page, Entry]:
    who = _who(asking)
    try:
        page = _found(asking, who)
        return who, page, _entry(asker, asking, who, page)
    except KeyDestroyed:  # the user was erased a moment ago, and is nobody now
        subjects.forget(who.uid or "")
        return NOBODY, Page(), _entry(asker, asking, NOBODY, Page())


def _who(asking: Asking) -> Who:
    if isinstance(asking.asked, SubjectSearch):
        return NOBODY
    return mapping.who(asking.backend, asking.asked.subject)


def _found(asking: Asking, who: Who) -> Page:
    match asking.asked:
        case SubjectSearch():
            return _subjects(asking, asking.asked)
        case _ if who.uid is None:  # whom nobody has met is not found, whatever the policy is for everybody
            return Page()
        case ResourceSearch():
            return _resources(asking, asking.asked, who)
        case _:
            return _actions(asking, asking.asked, who)


def _subjects(asking: Asking, asked: SubjectSearch) -> Page:
    policy, backend = asking.snapshot.policy, asking.backend
    tools = mapping.tools_of(policy, backend.id, asked.action, asked.resource)
    if asked.subject.type not in mapping.USER_TYPES or not any((backend.id, name) in policy.tools for name in tools):
        return Page()

    def may(user: Subject) -> bool:
        if user.erased_at is not None or user.issuer not in backend.issuers or not _is_meant(asked, user):
            return False
        state = (user.blocked_at is not None or user.deactivated_at is not None, user.signed_out_at, False)
        who = Who(user.issuer, user.uid)
        return decided(policy, backend.id, who, asked.subject.properties, asked.context, tools, state).allowed

    # In a tenant are those whose tokens have named it: of others nobody knows that they could come with it.
    tenant = asked.subject.properties.tenant
    met = tenants.users(None if tenant is None else frozenset({tenant}))
    # One more than may be looked at, so that it is known whether there are more.
    users = met.filter(uid__gt=asking.after).order_by("uid")[: LOOKED + 1]
    return _page(((user.uid, user) for user in users), may, asking.most, lambda user: _named(asked, user))


def _is_meant(asked: SubjectSearch, user: Subject) -> bool:
    """Whether the user is of the issuer that was named, if one was."""
    issuer = asked.subject.properties.issuer or asked.subject.properties.iss
    return issuer is None or issuer == user.issuer


def _named(asked: SubjectSearch, user: Subject) -> dict[str, str]:
    """A user as an answer names them: by uid, or, where whoever runs the platform has said so, as the issuer does. What
    looks like an e-mail address is not given out."""
    sub = subjects.read(user, "sub") if settings.MUNIMENT_AUTHZEN_SUBJECTS == "sub" else None
    return {"type": asked.subject.type, "id": sub if sub and "@" not in sub else user.uid}


def _resources(asking: Asking, asked: ResourceSearch, who: Who) -> Page:
    policy, backend, kind = asking.snapshot.policy, asking.backend, asked.resource.type

    def may(name: str) -> bool:
        resource = AskedResource(kind, name, asked.resource.properties)
        tools = mapping.tools_of(policy, backend.id, asked.action, resource)
        said = asked.subject.properties
        return decided(policy, backend.id, who, said, asked.context, tools, asking.state).allowed

    names = mapping.resources_for(policy, backend.id, kind, asked.action.name)
    return _page(_after(names, asking), may, asking.most, lambda name: {"type": kind, "id": name})


def _actions(asking: Asking, asked: ActionSearch, who: Who) -> Page:
    policy, backend = asking.snapshot.policy, asking.backend

    def may(name: str) -> bool:
        tools = mapping.tools_of(policy, backend.id, AskedAction(name), asked.resource)
        said = asked.subject.properties
        return decided(policy, backend.id, who, said, asked.context, tools, asking.state).allowed

    names = mapping.actions_with(policy, backend.id, asked.resource.type)
    return _page(_after(names, asking), may, asking.most, lambda name: {"name": name})


def _after(names: Iterable[str], asking: Asking) -> Iterator[tuple[str, str]]:
    return ((name, name) for name in names if name > asking.after)


def _page(
    candidates: Iterable[tuple[str, T]], may: Callable[[T], bool], most: int, named: Callable[[T], dict[str, str]]
) -> Page:
    """Go through candidates in the order of their names until the page is full, or has taken enough."""
    page, last = Page(), ""
    for name, candidate in candidates:
        if page.looked == LOOKED or len(page.results) >= most:
            page.after = last
            break
        page.looked += 1
        last = name
        if may(candidate):
            page.results.append(named(candidate))
    return page


def _entry(asker: Asker, asking: Asking, who: Who, page: Page) -> Entry:
    """The record of a search: what was asked, and how much was found; not whom."""
    asked, snapshot, backend = asking.asked, asking.snapshot, asking.backend
    subject = None if isinstance(asked, SubjectSearch) else asked.subject
    client = _client(asking, who)
    said = base(snapshot, backend, who, asked.subject.properties, asked.context) | {
        "search": {SubjectSearch: "subject", ResourceSearch: "resource", ActionSearch: "action"}[type(asked)],
        "client": client.slug if client else None,
        "client_id": asked.context.agent if client else None,
        "tool": _tool(asking),
        "results": len(page.results),
        "looked": page.looked,
        "named_by": settings.MUNIMENT_AUTHZEN_SUBJECTS if subject is None else None,
    }
    private = about(asker, subject, asked.context, who, None) | {
        "named_client": asked.context.agent if client is None else None,
        "resource": _resource(asked),
    }
    return question_entry(snapshot, backend, who, said, private, asking.state)


def _client(asking: Asking, who: Who) -> ClientPolicy | None:
    """The client that was named: at the issuer of the user, or where many are searched, at any that knows it."""
    agent, clients = asking.asked.context.agent, asking.snapshot.policy.clients
    issuers = [who.issuer] if who.issuer else sorted(asking.backend.issuers)
    return next((found for issuer in issuers if agent and (found := clients.get((issuer, agent)))), None)


def _tool(asking: Asking) -> str | None:
    """The tool that was asked about, where it was one, and is known."""
    if not isinstance(asking.asked, SubjectSearch):
        return None
    tools = mapping.tools_of(asking.snapshot.policy, asking.backend.id, asking.asked.action, asking.asked.resource)
    return next((name for name in tools if (asking.backend.id, name) in asking.snapshot.policy.tools), None)


def _resource(asked: Search) -> dict[str, str] | None:
    """The one resource that was asked about."""
    if isinstance(asked, ResourceSearch) or asked.resource.type == TOOL:
        return None
    return {"type": asked.resource.type, "id": asked.resource.id}
