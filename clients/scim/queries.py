"""Which users a query asks for (RFC 7644 section 3.4.2): `eq` on userName, externalId and id, joined by `and`, since
only of these there is something to find a user by. Anything else is refused as invalidFilter (pure)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError
from scim2_models import Context, Error, InvalidFilterException, ResponseParameters, SCIMException, SearchRequest
from scim2_models.path import CompareOperator, Comparison, FilterNode, LogicalExpr, LogicalOperator

from clients.scim import resources
from clients.scim.resources import MAX_PAGE, User

MAX_FILTER: Final = 2048  # characters
MAX_TERMS: Final = 10
FURTHEST: Final = 1_000_000_000
FOUND_BY: Final = {"username": "userName", "externalid": "externalId", "id": "id"}
KNOWN: Final = ("filter", "startIndex", "count")
ONLY: Final = "Filters are eq on userName, externalId and id, joined by and."


@dataclass(frozen=True, slots=True)
class Query:
    """What must hold (attribute, value in the form in which it is compared), where the page begins (from 0), how many
    users it has at most, and which attributes of each."""

    terms: tuple[tuple[str, str], ...] = ()
    start: int = 0
    count: int = MAX_PAGE
    wanted: ResponseParameters[User] = field(default_factory=ResponseParameters[User])


def read(given: Mapping[str, Any]) -> Query:
    """A query, from the parameters of a GET or the members of a SearchRequest. What is not known is read over, and so
    is an order, since sorting is not announced. Raises SCIMException."""
    asked = {name: given[name] for name in KNOWN if given.get(name) not in (None, "")}
    text = asked.get("filter", "")
    if isinstance(text, str) and len(text) > MAX_FILTER:
        raise InvalidFilterException(detail=f"A filter is at most {MAX_FILTER} characters long.")
    try:
        with resources.POLICY:
            request = SearchRequest[User].model_validate(asked, scim_ctx=Context.DEFAULT)
    except ValidationError as error:
        found = Error.from_validation_error(error.errors(include_url=False, include_input=False)[0])
        raise SCIMException.from_error(found) from None
    terms = tuple(_terms(request.filter.ast)) if request.filter is not None else ()
    if len(terms) > MAX_TERMS:
        raise InvalidFilterException(detail=f"A filter has at most {MAX_TERMS} terms.")
    count = MAX_PAGE if request.count is None else min(request.count, MAX_PAGE)
    start = min((request.start_index or 1) - 1, FURTHEST)
    return Query(terms, start, count, resources.parameters(given))


def _terms(node: FilterNode) -> Iterator[tuple[str, str]]:
    if isinstance(node, LogicalExpr) and node.op == LogicalOperator.and_:
        for term in node.terms:
            yield from _terms(term)
        return
    if not isinstance(node, Comparison) or node.op != CompareOperator.eq or not isinstance(node.value, str):
        raise InvalidFilterException(detail=ONLY)
    path = node.attr_path
    name = FOUND_BY.get(path.attr.lower())
    ours = path.uri is None or path.uri.lower() == str(User.__schema__).lower()
    if name is None or path.sub_attr is not None or not ours:
        raise InvalidFilterException(detail=ONLY)
    if not resources.fits(node.value):
        raise InvalidFilterException(detail="The filter holds a character that is none.")
    yield name, resources.comparable(name, node.value)
