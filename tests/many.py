"""A large organisation's policy, in bulk: for tests of pages that must stay readable and quick with it."""

from clients.models import Client, Grant, Issuer, OAuthClientId
from tests.world import World
from tools.models import Backend, Scope, Tool


def fill(world: World, clients: int = 50, backends: int = 10, tools: int = 50) -> None:
    """Rows in bulk; their triggers count all the same."""
    issuer = Issuer.objects.get()
    made = Client.objects.bulk_create(Client(slug=f"client-{n:02}", name=f"Client {n:02}") for n in range(clients - 1))
    OAuthClientId.objects.bulk_create(
        OAuthClientId(client=client, issuer=issuer, oauth_id=f"app-{client.slug}") for client in made
    )
    homes = Backend.objects.bulk_create(
        Backend(slug=f"backend-{n}", name=f"Backend {n}", audiences=[f"https://b{n}.example"]) for n in range(backends)
    )
    names = [f"{home.slug}:{access}" for home in homes for access in ("read", "write", "delete", "admin")]
    known = {scope.name: scope for scope in Scope.objects.bulk_create(Scope(name=name) for name in names)}
    accesses = ["read", "read", "write", "destructive"]
    all_tools = Tool.objects.bulk_create(
        Tool(backend=home, name=f"thing{n:02}.{'do' if n % 2 else 'get'}", access=accesses[n % 4],
             status="active" if n % 11 else "pending")
        for home in homes for n in range(tools)
    )  # fmt: skip
    links = Tool.scopes.through
    kinds = ["read", "read", "write", "delete"]
    links.objects.bulk_create(
        links(tool_id=tool.pk, scope_id=known[f"{tool.backend.slug}:{kinds[n % 4]}"].pk)
        for n, tool in enumerate(all_tools)
    )
    grant_rows = Grant.objects.bulk_create(
        Grant(client=client, reason="bulk", effect={3: "flag", 5: "deny"}.get(k, "allow"))
        for client in made for k in range(8)
    )  # fmt: skip
    given_scopes = Grant.scopes.through
    given_scopes.objects.bulk_create(
        given_scopes(grant_id=grant.pk, scope_id=known[names[(n // 8 * 3 + n % 8 * 5) % len(names)]].pk)
        for n, grant in enumerate(grant_rows)
    )
