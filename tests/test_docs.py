"""The documents say what the code does: links, file names, variables, commands, reason codes, shown answers."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import get_commands

from audit.reasons import REASONS
from governance.settings import KEYS_OF_PROCESS
from governance.supervisor_plan import URLS
from tests import world

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "sdk/README.md")),
    ROOT / "examples/inner/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PACKAGES = ("governance", "clients", "tools", "audit", "bench")
EXTERNAL = ("http://", "https://")
VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
# Functions that read a variable by the name that they are given; `get` is that of os.environ and the like.
READERS = {
    "str", "int", "float", "bool", "list", "get", "read_secret", "database", "days", "of_worker", "_number",
    "_value_or_file",
}  # fmt: skip


def text(name: str) -> str:
    """A document, by its path from the root."""
    return (ROOT / name).read_text()


def without_code(document: str) -> str:
    """The prose: without fenced blocks and code spans, in which brackets mean something else."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", document, flags=re.M | re.S))


def anchors(document: str) -> set[str]:
    """The anchors of the headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", document, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document, re.M | re.S)


def rows(document: str) -> list[list[str]]:
    """The cells of every table row whose first cell is a code span or several."""
    lines = re.findall(r"^\| *(`[^|]+`) *\|(.*)\|$", document, re.M)
    return [[first, *(cell.strip() for cell in rest.split("|"))] for first, rest in lines]


def section(document: str, title: str) -> str:
    """What stands under a heading of the second level, up to the next one."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", document, re.M | re.S)
    assert found, f"no section {title}"
    return found[1]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryDocument:
    def test_its_links_lead_somewhere(self, path: Path) -> None:
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
            if target.startswith(EXTERNAL):
                continue
            name, _, anchor = target.partition("#")
            aim = (path.parent / name).resolve() if name else path
            assert aim.is_relative_to(ROOT) and aim.is_file(), f"{target} does not exist"
            assert not anchor or anchor in anchors(aim.read_text()), f"{target} has no such heading"

    def test_the_files_that_it_names_exist(self, path: Path) -> None:
        spans = re.findall(r"`([^`\n]+)`", path.read_text())
        named = [s for s in spans if re.fullmatch(r"(?:[\w.-]+/)+[\w.-]*\.\w+", s) and not s.startswith("var/")]
        assert [name for name in named if not (ROOT / name).is_file()] == []

    def test_the_targets_and_commands_that_it_names_exist(self, path: Path) -> None:
        document = path.read_text()
        code = "\n".join([*re.findall(r"`([^`\n]+)`", document), *blocks(document, r"\w*")])
        targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.M))
        assert set(re.findall(r"(?:^|\s)make ([a-z]+)", code, re.M)) <= targets
        assert set(re.findall(r"manage\.py ([a-z_]+)", code)) <= get_commands().keys()

    def test_it_names_no_place_of_one_machine(self, path: Path) -> None:
        assert re.findall(r"(?<![\w.<>-])/(?:home|root|work|tmp|Users|mnt|srv|opt)/\S*", path.read_text()) == []
        assert re.findall(r"\b(?:pypi\.org|pythonhosted\.org|\S*index-url=\S+)", path.read_text()) == []

    def test_its_lines_end_well(self, path: Path) -> None:
        document = path.read_text()
        assert document.endswith("\n") and not document.endswith("\n\n")
        assert [line for line in document.splitlines() if line != line.rstrip() or "\t" in line] == []


def variables_read() -> dict[str, str | None]:
    """Every environment variable that our code reads, by name, with its default where that is a literal."""
    found: dict[str, str | None] = {}
    sources = [ROOT / "manage.py", *(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))]
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            for name, default in _reads(node):
                found[name] = default or found.get(name)
    keys = {f"MUNIMENT_{name}" for names in KEYS_OF_PROCESS.values() for name in names}
    return found | dict.fromkeys([*URLS, *sorted(keys)])


def _reads(node: ast.AST) -> Iterator[tuple[str, str | None]]:
    """The variable of one call of a reader, if it is one."""
    if not isinstance(node, ast.Call):
        return
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    strings = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    names = [
        s for s in strings if VARIABLE.fullmatch(s) and s.startswith(("MUNIMENT_", "DATABASE_", "REDIS_", "CELERY_"))
    ]
    if called not in READERS or not names or ast.unparse(node.func).startswith("settings."):
        return
    after = node.args[-1] if len(node.args) > 1 and called in ("str", "int", "float", "bool", "get", "days") else None
    yield names[0], None if after is None else _literal(after)


def _literal(node: ast.expr) -> str | None:
    """The value of a constant or of a product of numbers, as a document would write it."""
    source = ast.unparse(node)
    if isinstance(node, ast.Constant):
        return str(node.value)
    return str(eval(source)) if re.fullmatch(r"[\d *]+", source) else None


def test_the_configuration_page_has_exactly_the_variables_that_are_read() -> None:
    documented = [
        row[0].strip("`") for row in rows(text("docs/configuration.md")) if VARIABLE.fullmatch(row[0].strip("`"))
    ]
    assert sorted(documented) == sorted(variables_read())


def test_the_defaults_are_those_of_the_code() -> None:
    read = variables_read()
    listed = {row[0].strip("`"): row[1].strip("`") for row in rows(text("docs/configuration.md")) if len(row) == 3}
    wrong = {name: (listed[name], default) for name, default in read.items() if default and listed[name] != default}
    assert wrong == {}


def test_the_readme_names_variables_with_their_defaults() -> None:
    listed = {row[0]: row[1] for row in rows(text("docs/configuration.md"))}
    found = [row for row in rows(section(text("README.md"), "Settings")) if row[0] in listed and row[1] != "unset"]
    assert [row[0] for row in found] == ["`MUNIMENT_PORT`", "`MUNIMENT_VAR`"]
    assert all(row[1] == listed[row[0]] for row in found)


def test_each_key_is_listed_with_the_processes_that_get_it() -> None:
    listed = {
        row[0].strip("`").removeprefix("MUNIMENT_"): set(row[1].split(", "))
        for row in rows(section(text("docs/configuration.md"), "Keys"))
    }
    assert listed == {
        name: {process for process, names in KEYS_OF_PROCESS.items() if name in names}
        for name in set().union(*KEYS_OF_PROCESS.values())
    }


def test_every_system_check_is_listed() -> None:
    numbers = re.findall(r'id="(muniment\.[EW]\d+)"', text("governance/checks.py"))
    listed = re.findall(r"^\| `(muniment\.[EW]\d+)` \|", text("docs/configuration.md"), re.M)
    assert sorted(listed) == sorted(set(numbers))


def test_the_table_of_reasons_is_the_registry() -> None:
    table = rows(section(text("docs/decisions.md"), "The table"))
    assert table == [[f"`{r.code}`", str(r.status), f"`{r.remedy}`", r.title] for r in REASONS.values()]


def test_every_remedy_is_explained() -> None:
    opening = text("docs/decisions.md").partition("\n## ")[0]
    assert {row[0].strip("`") for row in rows(opening)} == {reason.remedy for reason in REASONS.values()}


def test_every_reason_has_a_section_with_what_each_can_do() -> None:
    parts = re.split(r"^### `(\w+)`$", text("docs/decisions.md"), flags=re.M)
    codes, bodies = parts[1::2], parts[2::2]
    assert codes == list(REASONS)
    for code, body in zip(codes, bodies, strict=True):
        words = " ".join(body.split())
        assert REASONS[code].sentence.rstrip(".") in words, f"{code} is not told in the registry's words"
        assert re.findall(r"^- \*\*(\w+)\*\*: \S", body, re.M) == ["Engineer", "Staff", "User"], code


def test_every_problem_is_listed() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "governance").glob("*.py"))
    problems = set(re.findall(r'Problem\(\s*(\d{3}), "([a-z-]+)"', sources))
    listed = {
        (status, kind)
        for status, kinds in re.findall(
            r"^\| (\d{3}) \| ([^|]+) \|", section(text("docs/decisions.md"), "Answers that are not decisions"), re.M
        )
        for kind in re.findall(r"`([^`]+)`", kinds)
    }
    assert listed == problems


def shape(value: Any) -> Any:
    """The members of an answer, all the way down; what they hold does not matter."""
    return {name: shape(member) for name, member in value.items()} if isinstance(value, dict) else None


def test_the_first_answer_has_the_shape_that_the_readme_shows(db: None) -> None:
    [shown] = blocks(section(text("README.md"), "A first call"), "json")
    assert shape(json.loads(shown)) == shape(world.build().verify())


def test_the_denial_that_is_shown_is_one_that_is_given(db: None) -> None:
    [shown] = blocks(text("docs/decisions.md"), "json")
    answer = world.build().verify("memory.capture", token=world.token(scope="memory:read"))
    expected = json.loads(shown)
    assert {name: answer.get(name) for name in expected} == expected


def test_the_readme_shows_what_make_run_prints(db: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from governance import demo

    key = tmp_path / "key"
    key.write_text("mk_x_y")
    monkeypatch.setattr(demo, "key_file", lambda: key)
    monkeypatch.setattr(demo, "prefix", lambda: "")
    monkeypatch.setattr(settings, "MUNIMENT_URL", "http://127.0.0.1:8000")
    demo.make_staff()
    [shown] = blocks(section(text("README.md"), "A first call"), "text")
    pattern = re.sub(r"<[\w\\-]+>", r"[A-Za-z0-9_.-]+", re.escape(shown.strip()))
    assert re.fullmatch(pattern, demo.hello().strip())
