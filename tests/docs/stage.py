"""What runs the snippets of a document, in their order, as somebody would who follows it: in one folder, one shell and
one Python, beside a platform."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from clients import policyfile, policyfile_apply
from governance.settings import KEYS_OF_PROCESS
from muniment import Muniment
from tests.docs.markdown import ROOT, Block, blocks
from tests.live import free_port

SECONDS = 180  # of one block, on a machine that is busy
LINKED = ("manage.py", "examples")  # what a document may use of the repository, beside .venv and sdk
OURS = re.compile("MUNIMENT_|DATABASE_|REDIS_|CELERY_")  # what the tests' environment is configured by
# `pip install` looks whether everything is there, and changes nothing.
PIP = {"PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


class SnippetFailed(AssertionError):
    """A snippet that does not do what the document says; the text says which, and why."""


class Stage:
    """One document's: a folder of its own, the environment of its shell, the names of its Python. A context manager,
    which stops what the document started."""

    def __init__(self, folder: Path, platform: str, **given: str) -> None:
        self.folder, self.platform, self.port = folder, platform, free_port()
        others = {name: value for name, value in os.environ.items() if not OURS.match(name)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{others['PATH']}"
        self.environment = others | PIP | given | {"PATH": path, "CURL_HOME": str(folder)}
        self.names: dict[str, Any] = {"__name__": "snippet"}
        self.guards: list[Muniment] = []
        self.files: dict[str, str] = {}
        self.said: str | None = None
        self.server: subprocess.Popen[str] | None = None
        (folder / ".venv").symlink_to(sys.prefix)
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        # pip writes where it reads.
        shutil.copytree(
            ROOT / "sdk", folder / "sdk", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__", "build")
        )
        (folder / "var").mkdir()
        (folder / "nginx").mkdir()
        (folder / "var/instance.env").write_text(instance(platform))

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for guard in self.guards:
            guard.close(20)

    def play(self, document: str, leave: Callable[[Block], bool] = lambda block: False) -> None:
        """Run all blocks of a document but those to `leave`. Raises SnippetFailed."""
        waiting = blocks(document)
        for number, block in enumerate(waiting):
            if leave(block):
                continue
            runner = RUNNERS.get(block.language)
            if runner is None:
                raise SnippetFailed(f"line {block.line}: nobody runs {block.language or 'a block without a language'}")
            following = waiting[number + 1].language if number + 1 < len(waiting) else ""
            try:
                runner(self, block, following)
            except SnippetFailed as error:
                raise SnippetFailed(f"line {block.line}: {error}") from error
        if unused := [name for name in self.files.values() if name]:
            raise SnippetFailed(f"nothing runs {', '.join(unused)}")

    def here(self, text: str) -> str:
        """With the addresses of this run: the platform's, and that of the document's own server."""
        for shown in ("https://muniment.example", "http://127.0.0.1:8000"):
            text = text.replace(shown, self.platform)
        text = text.replace("/etc/nginx/", f"{self.folder}/nginx/")
        return re.sub(r"(127\.0\.0\.1:|--port )9000\b", rf"\g<1>{self.port}", text)

    # --- one block ----------------------------------------------------------------------------------------

    def save(self, block: Block) -> bool:
        """Whether it is a file: then it is written, or put at the end of it if there is one of that name."""
        if not block.more:
            return False
        if not re.fullmatch(r"[\w.-]+", block.more):
            raise SnippetFailed(f"{block.more!r} is no file name")
        with (self.folder / block.more).open("a") as file:
            file.write(self.here(block.text))
        self.files[block.more] = block.more
        return True

    def shell(self, block: Block, following: str) -> None:
        """Run it with `bash -e`; what it exports stays. The output of curl must be shown where it is no success."""
        script = self.here(block.text)
        for name in self.files:
            if re.search(rf"\b{re.escape(Path(name).stem)}\b", script):
                self.files[name] = ""
        if block.more == "background":
            self.start(script)
            return
        if block.more:
            raise SnippetFailed(f"nobody knows what {block.more!r} means")
        (self.folder / ".curlrc").write_text("" if following == "text" else "fail-with-body\n")
        kept = self.folder / ".environment"
        status, self.said, complaint = self.bash(f'{script}\nenv -0 > "$STAGE_KEPT"', STAGE_KEPT=str(kept))
        if status:
            raise SnippetFailed(f"exit status {status}\n{self.said}\n{complaint}")
        self.environment = dict(pair.split("=", 1) for pair in kept.read_text().split("\0") if "=" in pair)
        # `export NAME=$(command)` succeeds whatever the command does.
        if empty := [n for n in re.findall(r"\bexport (\w+)=", script) if not self.environment.get(n)]:
            raise SnippetFailed(f"{', '.join(empty)} is empty\n{complaint}")

    def bash(self, script: str, **more: str) -> tuple[int, str, str]:
        """Run a script to its end, and what it started; exit status, output, errors."""
        process = subprocess.Popen(
            ["bash", "-e", "-c", script], cwd=self.folder, env=self.environment | more, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True,
        )  # fmt: skip
        try:
            said, complaint = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise SnippetFailed(f"not at its end after {SECONDS} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, said, complaint

    def start(self, script: str) -> None:
        """Start the document's server; the one before it is stopped, as the document says with Ctrl-C."""
        self.stop()
        log = self.folder / ".server.log"
        with log.open("w") as file:
            self.server = subprocess.Popen(
                ["bash", "-e", "-c", f"exec {script.strip()}"], cwd=self.folder, env=self.environment, stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True, text=True,
            )  # fmt: skip
        self.said = None
        deadline = time.monotonic() + SECONDS
        while self.server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise SnippetFailed(f"it does not serve\n{log.read_text()}")

    def stop(self) -> None:
        """Stop the document's server, if one runs."""
        if self.server is None or self.server.poll() is not None:
            return
        for number in (signal.SIGINT, signal.SIGKILL):
            os.killpg(self.server.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.wait(30)
                return

    def python(self, block: Block, following: str) -> None:
        """Write a file, or run it with the names of what ran before."""
        if self.save(block):
            return
        said = io.StringIO()
        try:
            code = compile(self.here(block.text), f"line {block.line}", "exec")
            with (
                mock.patch.dict(os.environ, self.environment), contextlib.chdir(self.folder),
                contextlib.redirect_stdout(said),
            ):  # fmt: skip
                exec(code, self.names)
        except (Exception, SystemExit) as error:
            raise SnippetFailed(f"{type(error).__name__}: {error}") from error
        finally:
            self.guards += [one for one in self.names.values() if isinstance(one, Muniment) and one not in self.guards]
        self.said = said.getvalue()

    def policy(self, block: Block, following: str) -> None:
        """Write a file, or apply a policy file."""
        if not self.save(block):
            try:
                policyfile_apply.apply(policyfile.parse(self.here(block.text)), "a document")
            except policyfile.PolicyFileError as error:
                raise SnippetFailed(str(error)) from error
        self.said = None

    def json(self, block: Block, following: str) -> None:
        """Compare with what the block before it answered, member by member; by itself it is JSON."""
        try:
            expected = json.loads(block.text)
            answered = json.loads(self.said) if self.said else None
        except ValueError as error:
            raise SnippetFailed(str(error)) from error
        if self.said and members(expected) != members(answered):
            raise SnippetFailed(f"answered was {self.said}")
        self.said = None

    def text(self, block: Block, following: str) -> None:
        """Compare with what the block before it printed; `...` stands for anything within a line."""
        if self.said is None:
            raise SnippetFailed("nothing before it printed this")
        expected = re.escape(self.here(block.text).strip()).replace(re.escape("..."), "[^\n]*")
        if not re.fullmatch(expected, self.said.replace("\r", "").strip()):
            raise SnippetFailed(f"printed was\n{self.said}")
        self.said = None


def instance(platform: str) -> str:
    """What `make run` writes for the commands of a second shell."""
    keys = {f"MUNIMENT_{name}" for name in KEYS_OF_PROCESS["web"] - KEYS_OF_PROCESS["manage"]}
    found = {name: value for name, value in os.environ.items() if OURS.match(name) and name not in keys}
    found |= {"MUNIMENT_PROCESS": "manage", "MUNIMENT_PORT": str(urlsplit(platform).port)}
    return "".join(f"{name}={value}\n" for name, value in found.items())


def members(value: Any) -> Any:
    """The names of an answer, all the way down; what they hold does not matter."""
    if isinstance(value, dict):
        return {name: members(member) for name, member in value.items()}
    return [members(value[0])] if isinstance(value, list) and value else None


Runner = Callable[[Stage, Block, str], None]
RUNNERS: dict[str, Runner] = {
    "bash": Stage.shell, "python": Stage.python, "yaml": Stage.policy, "json": Stage.json, "text": Stage.text,
}  # fmt: skip
