"""Every snippet of the documents for backends runs, as it stands there: here, or by a test beside the code that it is
about (tests/docs/taken.py). What nobody runs fails."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from audit.models import Record
from governance import demo, demo_issuer, process
from tests.docs.markdown import ROOT, Block, blocks
from tests.docs.stage import Stage
from tests.docs.taken import TAKEN, Taken
from tests.reset import reset
from tests.served import platform
from tests.staff import administrator

DOCS = ROOT / "docs"
DOCUMENTS = ["inner.md", *sorted(f"integrations/{path.name}" for path in (DOCS / "integrations").glob("*.md"))]
SHORT = {"README.md": "Guard a backend", "sdk/README.md": "Guard a backend"}  # with one section of this kind


@pytest.fixture(scope="module")
def url(migrated: None) -> Iterator[str]:
    """The platform's, for all documents."""
    with platform() as found, override_settings(MUNIMENT_URL=found):
        yield found
    process.stop_recorder()


@pytest.fixture
def demo_url(url: str) -> str:
    """The platform's, with the demo as it is at the start."""
    reset()
    demo.load_policy()
    demo.publish_keys()
    return url


@pytest.fixture
def stage(demo_url: str, tmp_path: Path) -> Iterator[Stage]:
    """What the documents but the quickstart take as given: the backend's key, and a token."""
    token = demo_issuer.mint("alice", "claude", "memory:read memory:write")
    with Stage(tmp_path, demo_url, MUNIMENT_URL=demo_url, MUNIMENT_KEY=demo.backend_key(), TOKEN=token) as made:
        yield made


def statements(kind: str) -> list[dict[str, Any]]:
    rows = Record.objects.filter(type=kind).order_by("index")
    return [json.loads(bytes(row.statement)) for row in rows]


def test_the_quickstart_begins_with_nothing_and_every_call_of_it_is_on_record(demo_url: str, tmp_path: Path) -> None:
    with Stage(tmp_path, demo_url) as stage:
        stage.play((DOCS / "quickstart.md").read_text())
    decisions = [(found["tool"], found["reason"], found["client"]) for found in statements("decision")]
    assert decisions[:4] == [
        ("memory.recall", "granted", "claude"),
        ("memory.recall", "token_missing", None),
        ("memory.capture", "insufficient_scope", "claude"),
        ("memory.count", "granted", "claude"),
    ]
    assert [found["outcome"]["status"] for found in statements("outcome")][:2] == ["ok", "ok"]
    assert [found["tool"] for found in statements("ungoverned")] == ["memory.prompts"]
    shown = administrator().get("/admin/records/").content.decode()
    first = Record.objects.filter(type="decision").order_by("index").first()
    assert first is not None and f"/admin/records/{first.pk}/" in shown


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_snippets_of_a_document(request: pytest.FixtureRequest, document: str) -> None:
    text = (DOCS / document).read_text()
    if all((document, block.language) in TAKEN for block in blocks(text)):
        return  # nothing is left to run here
    stage: Stage = request.getfixturevalue("stage")
    stage.play(text, lambda block: (document, block.language) in TAKEN)


@pytest.mark.parametrize(("document", "title"), SHORT.items())
def test_the_section_about_backends(stage: Stage, document: str, title: str) -> None:
    found = re.search(rf"^## {title}\n.*?(?=^## |\Z)", (ROOT / document).read_text(), re.M | re.S)
    assert found
    stage.play(found[0])
    with stage.names["guard"].request(stage.environment["TOKEN"]):
        assert stage.names["recall"]("the sea") == ["what alice remembers of the sea"]


@pytest.mark.parametrize(("where", "taken"), TAKEN.items(), ids=["-".join(where) for where in TAKEN])
def test_what_is_left_to_another_test_is_taken_there(where: tuple[str, str], taken: Taken) -> None:
    document, language = where
    found = [block for block in blocks((DOCS / document).read_text()) if block.language == language]
    assert len(found) == taken.blocks, "that test does not know of a new one"
    assert taken.holds(), f"{taken.file} has no {taken.by}"


def test_no_test_takes_what_is_not_in_its_code() -> None:
    taker = TAKEN["integrations/okta.md", "yaml"]
    assert taker.holds() and not Taken(taker.file, 'recipe("another")').holds()
    assert not Taken("docs/taken.py", 'recipe("okta")').holds(), "what stands in a string is no code"


def test_the_key_of_nginx_is_for_root_alone(stage: Stage) -> None:
    stage.play((DOCS / "integrations/nginx.md").read_text(), lambda block: block.language != "bash")
    made = stage.folder / "nginx/muniment-key.conf"
    assert made.stat().st_mode & 0o777 == 0o600
    assert made.read_text() == "proxy_set_header X-Muniment-Key mk_...;\n"


def empty(tmp_path: Path) -> Stage:
    return Stage(tmp_path, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("```\ncurl x\n```", "nobody runs a block without a language"),
        ("```rust\nfn main() {}\n```", "nobody runs rust"),
        ("```console\n$ true\n```", "nobody runs console"),
        ("```bash\nfalse\ntrue\n```", "exit status 1"),
        ("```bash\nexport KEY=$(false)\n```", "KEY is empty"),
        ("```bash\ncurl -s http://127.0.0.1:9/\n```", "exit status 7"),
        ("```bash sometimes\ntrue\n```", "nobody knows what 'sometimes' means"),
        ("```bash background\nfalse\n```", "it does not serve"),
        ("- a list:\n\n  ```python\n  1 / 0\n  ```", "ZeroDivisionError"),
        ("~~~python\nraise SystemExit(0)\n~~~", "SystemExit"),
        ("```python\nimport os\n", "a fence that is not closed"),
        ("Code:\n\n    curl x", "code without a fence"),
        ("> ```bash\n> false\n> ```", "code where nobody looks for it"),
        ("1. ```bash\n   false\n   ```", "code where nobody looks for it"),
        ("<pre>false</pre>", "code where nobody looks for it"),
        ("```python never.py\nprint(1)\n```", "nothing runs never.py"),
        ("```python ../never.py\nprint(1)\n```", "is no file name"),
        ("```yaml\ntools: [{backend: none, name: x}]\n```", "line 1: "),
        ("```json\n{'a': 1}\n```", "Expecting property name"),
        ('```bash\necho \'{"a": {"b": 1}}\'\n```\n```json\n{"a": {"c": 1}}\n```', "answered was"),
        ("```bash\necho no\n```\n```json\n{}\n```", "Expecting value"),
        ("```python\nprint('one\\nmore')\n```\n```text\none\n```", "printed was"),
        ("```python\nprint('anything\\nmore')\n```\n```text\n...\n```", "printed was"),
        ("```text\nDone.\n```", "nothing before it printed this"),
    ],
)
def test_a_snippet_that_does_not_do_what_it_says_fails(migrated: None, tmp_path: Path, document: str, why: str) -> None:
    with empty(tmp_path) as stage, pytest.raises((AssertionError, ValueError), match=re.escape(why)):
        stage.play(document)


def test_what_a_snippet_makes_the_next_one_has(tmp_path: Path) -> None:
    document = """
```bash
export NAME=$(echo one)
```

```python
import os

name = os.environ["NAME"]
```

```python more.py
print("from a file")
```

```python
print(name, "two")
```

```text
one ...
```

```bash
.venv/bin/python more.py
echo '{"a": [{"b": 1}], "c": null}'
```
"""
    with empty(tmp_path) as stage:
        stage.play(document)
        stage.said = str(stage.said).partition("\n")[2]
        stage.play('```json\n{"a": [{"b": 2}, {"b": 3}], "c": "x"}\n```')


def test_a_document_cannot_stay_unseen() -> None:
    known = {DOCS / name for name in ["quickstart.md", *DOCUMENTS]}
    assert {path for path in DOCS.rglob("*.md") if path.parent.name == "integrations"} <= known
    assert {document for document, _ in TAKEN} <= {*DOCUMENTS}
    assert blocks((DOCS / "quickstart.md").read_text())


def test_fences_are_read_as_renderers_read_them() -> None:
    document = "````text\n```python\nx\n```\n````\n~~~yaml a b\n```\n~~~\n"
    assert blocks(document) == [
        Block("text", "", "```python\nx\n```\n", 1), Block("yaml", "a b", "```\n", 6),
    ]  # fmt: skip
