"""The snippets that a test beside their code runs, in a world of its own: which test, and where it takes them."""

import ast
from dataclasses import dataclass
from functools import cache

from tests.docs.markdown import ROOT


@dataclass(frozen=True)
class Taken:
    """By a file of tests, with an expression that takes them from the document, or plays what they say; so many of the
    document's blocks of that language there are."""

    file: str
    by: str
    blocks: int = 1

    def holds(self) -> bool:
        """Whether that expression is in the code of that file."""
        return ast.unparse(ast.parse(self.by, mode="eval")) in expressions(self.file)


@cache
def expressions(file: str) -> frozenset[str]:
    """All expressions of a file, however they are written."""
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return frozenset(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.expr))


def page(name: str) -> str:
    """How a test reads a page."""
    return f"(Path(__file__).resolve().parents[2] / 'docs/integrations/{name}').read_text()"


RECIPES, PROXIES = "clients/test_issuer_recipes.py", "governance/test_forward_auth_proxies.py"
ADAPTERS, REPLAYED = "sdk/test_adapter_docs.py", "governance/test_forward_auth_replayed.py"
CLIENTS = 'pytest.mark.parametrize("name", ["claude", "chatgpt"])'
ROUTES = 'pytest.mark.parametrize("page", ["configuration.md", "integrations/forward-auth.md"])'
TAKEN = {
    ("inner.md", "bash"): Taken("governance/test_newcomer.py", 'shown("inner.md", "bash")', 2),
    ("inner.md", "text"): Taken("governance/test_newcomer.py", 'shown("inner.md", "text")'),
    ("integrations/assertions.md", "python"): Taken("sdk/test_assertion.py", page("assertions.md"), 3),
    ("integrations/authzen.md", "yaml"): Taken(
        "governance/test_authzen_certification.py", 'blocks(text("docs/integrations/authzen.md"), "yaml")'
    ),
    ("integrations/caddy.md", "caddy"): Taken(PROXIES, 'configuration(kind, port, behind, server.port)'),
    ("integrations/nginx.md", "nginx"): Taken(PROXIES, 'configuration(kind, port, behind, server.port)'),
    ("integrations/envoy.md", "yaml"): Taken(REPLAYED, 'blocks("envoy.md")', 2),
    ("integrations/traefik.md", "yaml"): Taken(REPLAYED, 'blocks("traefik.md")'),
    ("integrations/forward-auth.md", "yaml"): Taken("tools/test_backend_routes.py", ROUTES),
    ("integrations/chatgpt.md", "yaml"): Taken(RECIPES, CLIENTS),
    ("integrations/chatgpt.md", "json"): Taken(RECIPES, 'block("chatgpt", "json")'),
    ("integrations/claude.md", "yaml"): Taken(RECIPES, CLIENTS),
    ("integrations/django.md", "python"): Taken(ADAPTERS, 'snippets("django.md")', 3),
    ("integrations/fastapi.md", "python"): Taken(ADAPTERS, 'snippets("fastapi.md")', 2),
    ("integrations/postgresql.md", "python"): Taken("sdk/test_encryption_postgres.py", page("postgresql.md"), 3),
} | {
    (f"integrations/{name}.md", language): Taken(RECIPES, f'recipe("{name}")')
    for name in ("auth0", "cognito", "entra", "firebase", "keycloak", "okta", "workos")
    for language in ("yaml", "json")
}  # fmt: skip
