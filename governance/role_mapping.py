"""From the identity provider's groups to roles (pure): what MUNIMENT_OIDC_ROLES says, and what groups give."""

from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from governance.roles import ADMINISTRATOR, ROLES

BY_SLUG: Mapping[str, str] = {name.lower().replace(" ", "-"): name for name in ROLES}
Roles = Mapping[str, frozenset[str]]


def parse(text: str, admin_group: str = "") -> dict[str, frozenset[str]]:
    """The roles of each group. `text` has `group=role` pairs with commas between, the role by its slug
    (`access-manager`); a comma, equals or percent sign in the name of a group is percent-encoded. Members of
    `admin_group`, which is taken as it is, are administrators. Raises ValueError for what cannot be."""
    found: dict[str, set[str]] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        group, _, slug = pair.partition("=")
        if pair.count("=") != 1 or not (group := unquote(group.strip())):
            raise ValueError("each pair is written group=role")
        if (role := BY_SLUG.get(slug.strip())) is None:
            raise ValueError(f"a role is one of {', '.join(BY_SLUG)}")
        found.setdefault(group, set()).add(role)
    if admin_group:
        found.setdefault(admin_group, set()).add(ADMINISTRATOR)
    return {group: frozenset(roles) for group, roles in found.items()}


def roles_of(groups: Iterable[str], mapping: Roles) -> frozenset[str]:
    """The roles that these groups give together; names are compared exactly."""
    return frozenset().union(*(mapping.get(group, frozenset()) for group in groups))
