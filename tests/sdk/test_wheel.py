"""The package as it is installed: what its wheel holds, and what importing it brings along."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SDK = Path(__file__).resolve().parents[2] / "sdk"
BACKEND = "from muniment import Muniment, current_caller, Denied; import muniment.isolation, muniment.encryption"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "sdk"
    source.mkdir()
    for path in (*SDK.glob("*.*"), *SDK.glob("muniment/**/*.py"), SDK / "muniment" / "py.typed"):
        if path.is_file():
            (source / path.relative_to(SDK)).parent.mkdir(parents=True, exist_ok=True)
            (source / path.relative_to(SDK)).write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([*command, str(folder), str(source)], check=True, capture_output=True, timeout=100)
    [built] = folder.glob("muniment-*.whl")
    return built


def test_the_wheel_holds_every_module_and_its_types(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(SDK)) for path in SDK.glob("muniment/**/*.py")}
    assert modules | {"muniment/py.typed"} <= held


def test_the_wheel_needs_three_packages_and_offers_the_frameworks_as_extras(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
    lines = archive.read(name).decode().splitlines()
    plain = [line for line in lines if line.startswith("Requires-Dist") and "extra" not in line]
    needed = {line.split()[1].split(">")[0] for line in plain}
    assert needed == {"msgspec", "cryptography", "httpx2"}
    assert "Requires-Python: >=3.11" in lines
    assert {line.split()[1] for line in lines if line.startswith("Provides-Extra")} >= {"mcp", "fastmcp", "django"}


def imported(statement: str, wheel: Path) -> set[str]:
    """The packages that are loaded after a statement, which finds the SDK in the wheel alone."""
    program = f"import sys; sys.path.insert(0, {str(wheel)!r}); {statement}; import muniment; print(muniment.__file__)"
    program += "; print(' '.join(name for name in sys.modules if '.' not in name))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd="/", capture_output=True, text=True, check=True, timeout=60
    )
    place, names = done.stdout.splitlines()
    assert place.startswith(str(wheel))
    return set(names.split())


def test_a_backend_gets_no_framework_that_it_does_not_use(wheel: Path) -> None:
    found = imported(BACKEND, wheel)
    assert "httpx2" in found and not found & {"django", "mcp", "fastmcp", "starlette", "psycopg", "fastapi"}


def test_an_auditor_gets_no_http_client(wheel: Path) -> None:
    found = imported("import muniment.verify, muniment.bundle, muniment.cli", wheel)
    assert not found & {"httpx2", "django", "psycopg"}
