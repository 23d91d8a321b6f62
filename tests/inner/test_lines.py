"""How much of inner's server is about identity, scopes and audit: counted from its code."""

import ast
import re
from pathlib import Path

import pytest

INNER = Path(__file__).resolve().parents[2] / "examples" / "inner"
# What such lines are written with, whatever they call: arguments of the guard, and the words of the matter.
ARGUMENTS = {"scopes", "access", "fail", "assertion", "guard"}
WORDS = re.compile(r"(?i)authoriz|authentic|bearer|jwt|token|scope|issuer|audience|audit|caller|\buid\b|verif|muniment")


def lines_about(source: str) -> list[str]:
    """Lines of code, docstrings and comments aside, that name what comes from the SDK, take an argument of the guard,
    or have a word of the matter in them."""
    tree = ast.parse(source)
    ours: set[str] = set()
    numbers: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "muniment":
            ours |= {name.asname or name.name for name in node.names}
            numbers |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if name in ours or WORDS.search(name):
                numbers.add(node.lineno)
            case ast.Attribute(attr=name) | ast.arg(arg=name) if WORDS.search(name):
                numbers.add(node.lineno)
            case ast.keyword(arg=str(name)) if name in ARGUMENTS:
                numbers.add(node.value.lineno)
    text = source.splitlines()
    return [text[number - 1].strip() for number in sorted(numbers)]


def test_the_server_has_at_most_five() -> None:
    found = lines_about((INNER / "server.py").read_text()) + lines_about((INNER / "rest.py").read_text())
    assert found == [
        "from muniment.adapters.mcp import GuardedServer",
        'server = GuardedServer("inner", instructions=ABOUT, log_level="WARNING")',
        '@server.tool("memory.capture", scopes="memory:write")',
        '@server.tool("memory.recall", scopes="memory:read")',
        '@server.tool("memory.forget", scopes="memory:forget", access="destructive")',
    ]
    assert len(found) <= 5


def test_a_tool_more_is_one_line_more() -> None:
    source = (INNER / "server.py").read_text()
    more = '@server.tool("memory.count", scopes="memory:read")\ndef count() -> int:\n    return 0\n'
    assert len(lines_about(source + more)) == len(lines_about(source)) + 1


def test_the_store_has_those_of_isolation() -> None:
    """They are about the data, and are not counted above: who runs the query, and what encrypts."""
    found = lines_about((INNER / "memories.py").read_text())
    assert 0 < len(found) <= 14, found


@pytest.mark.parametrize(
    "line",
    ["x = jwt.decode(y)", "def f(token): pass", "if request.user.is_authenticated: pass", "g(1, scopes='a')",
     "from muniment import Denied", "log(caller)"],
)  # fmt: skip
def test_the_count_sees_what_is_about_it(line: str) -> None:
    assert len(lines_about(line)) == 1


def test_the_count_leaves_out_what_is_not() -> None:
    assert lines_about('"""A token."""\nx = recall(query)  # the caller\n') == []
