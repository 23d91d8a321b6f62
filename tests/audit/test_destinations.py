"""Where exports go: how destinations are written down, what a directory does, and what becomes of each attempt."""

import errno
import os
import re
import stat
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from audit import destinations, models, tasks
from audit.destinations import ConfigError, DeliveryFailed, Differs, directory
from audit.destinations.base import Sending
from governance.settings import of_worker
from governance.supervisor_plan import Urls, environment_for, read_plan

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMmPCLSA0Fgbvh8aCJ5zUQgVtWa3VSfLu0bAANVqZ8Sn"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What is to be delivered."""
    path = tmp_path / "calls-1-20261101T0000Z.csv"
    path.write_bytes(b"at,client\n" * 50_000)
    return path


@pytest.fixture
def place(tmp_path: Path, settings: Any) -> Path:
    """A directory that is the only destination, `archive`."""
    place = tmp_path / "place"
    place.mkdir()
    settings.MUNIMENT_DESTINATIONS = f"[{{name: archive, kind: directory, path: {place}}}]"
    return place


@pytest.mark.parametrize("name", ["MUNIMENT_DESTINATIONS", "MUNIMENT_NOTIFY_WEBHOOK"])
def test_what_holds_credentials_of_other_places_is_the_workers_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "s3cret")
    for process in ("web", "beat", "seal"):
        with pytest.raises(ImproperlyConfigured, match=f"{name} is set, but the process '{process}' must not have it"):
            of_worker(name, process)
    assert of_worker(name, "worker") == of_worker(name, "manage") == "s3cret"
    plan, urls = read_plan({}), Urls("postgresql:///a", "postgresql:///b", "redis:///c")
    for process in ("web", "beat", "seal", "worker"):
        found = environment_for(process, plan, urls, {name: "s", f"{name}_FILE": "/s"}, owner=False)
        assert (name in found, f"{name}_FILE" in found) == (process == "worker", process == "worker")


@pytest.mark.usefixtures("db")
def test_the_system_check_says_what_is_wrong_without_what_is_in_it(settings: Any) -> None:
    settings.MUNIMENT_DESTINATIONS = "[{name: archive, kind: directory, path: s3cret}]"
    with pytest.raises(SystemCheckError, match=r"muniment\.E010") as found:
        call_command("check", tags=["security"], verbosity=0)
    assert "s3cret" not in str(found.value)


class TestEntries:
    @pytest.mark.parametrize(
        ("entry", "place"),
        [
            ("{name: a, kind: directory, path: /srv/exports}", "/srv/exports"),
            ("{name: a, kind: s3, bucket: evidence, prefix: /x/y/}", "s3://evidence/x/y"),
            (
                "{name: a, kind: s3, bucket: e, endpoint: 'https://s.example:9000', access_key: id, secret_key: s3}",
                "s3://e at s.example:9000",
            ),
            (
                f"{{name: a, kind: sftp, host: sftp.example, username: u, password: s3, path: /in, host_key: {KEY}}}",
                "sftp://sftp.example/in",
            ),
            (
                f"{{name: a, kind: sftp, host: '::1', port: 2222, username: u, password: s3, path: /in/,"
                f" host_key: 'sftp.example,192.0.2.1 {KEY} a comment'}}",
                "sftp://[::1]:2222/in",
            ),
            ("{name: a, kind: https, url: 'https://dav.example/in/', token: s3}", "https://dav.example/in/"),
            ("{name: a, kind: https, url: 'http://127.0.0.1:8080', username: u, password: p}", "http://127.0.0.1:8080/"),
        ],
        ids=["directory", "s3", "s3-endpoint", "sftp", "sftp-port", "https", "loopback"],
    )  # fmt: skip
    def test_each_kind_is_named_by_its_place_without_credentials(self, entry: str, place: str) -> None:
        [found] = destinations.parse(f"- {entry}")
        assert (found.name, found.place) == ("a", place)
        assert "s3" not in repr(found).replace("<s3 a>", "")

    @pytest.mark.parametrize(
        "entry",
        [
            "s3cret",
            "{name: a, kind: s3cret}",
            "{name: 's3cret name', kind: directory, path: /x}",
            "{kind: directory, path: /x}",
            "{name: a, kind: directory, path: s3cret}",
            "{name: a, kind: directory, path: /}",
            "{name: a, kind: directory, path: /x/../s3cret}",
            "{name: a, kind: directory, path: /x, s3cret!: 1}",
            "{name: a, kind: directory, path: /x, mode: s3cret}",
            "{name: a, kind: directory, path: [s3cret]}",
            "{name: a, kind: directory}",
            "{name: a, kind: s3, bucket: 's3cret/x'}",
            "{name: a, kind: s3, bucket: b, prefix: ../s3cret}",
            "{name: a, kind: s3, bucket: b, secret_key: s3cret}",
            "{name: a, kind: s3, bucket: b, endpoint: 'http://s3cret.example'}",
            "{name: a, kind: s3, bucket: b, endpoint: 'https://id:s3cret@x'}",
            "{name: a, kind: s3, bucket: b, endpoint: 'https://x:s3cret'}",
            "{name: a, kind: s3, bucket: b, access_key: i, secret_key: \"s3cret\\nx\"}",
            "{name: a, kind: s3, bucket: b, access_key: i, secret_key: x, secret_key_file: /s3cret}",
            "{name: a, kind: s3, bucket: b, access_key: i, secret_key_file: /s3cret}",
            f"{{name: a, kind: sftp, host: h, username: u, password: s3cret, path: x, host_key: {KEY}}}",
            "{name: a, kind: sftp, host: h, username: u, password: s3cret, path: /x}",
            "{name: a, kind: sftp, host: h, username: u, password: s3cret, path: /x, host_key: s3cret}",
            "{name: a, kind: sftp, host: h, username: u, password: s3cret, path: /x, host_key: ssh-ed25519 AAAAs3cret}",
            f"{{name: a, kind: sftp, host: h, username: u, path: /x, host_key: {KEY}}}",
            f"{{name: a, kind: sftp, host: h, username: u, path: /x, host_key: {KEY}, private_key_file: /s3cret}}",
            f"{{name: a, kind: sftp, host: h, port: s3cret, username: u, password: x, path: /x, host_key: {KEY}}}",
            "{name: a, kind: https, url: 'http://s3cret.example', token: x}",
            "{name: a, kind: https, url: 'https://id:s3cret@h/', token: x}",
            "{name: a, kind: https, url: 'https://h/?s3cret', token: x}",
            "{name: a, kind: https, url: 'https://h/', token: 's3cret s3cret'}",
            "{name: a, kind: https, url: 'https://h/', token: x, username: s3cret, password: s3cret}",
            "{name: a, kind: https, url: 'https://h/', username: s3cret}",
            "{name: a, kind: https, url: 'https://h/'}",
            "{name: a, name: s3cret, kind: directory, path: /x}",
            "{name: a, kind: directory, path: /x, s3cret: *x}",
            "{name: s3cret, kind: ",
            "{name: a, kind: directory, path: !!bool s3cret}",
            "{name: a, kind: directory, path: !!timestamp s3cret}",
            "{name: a, kind: directory, path: !!int '', more: s3cret}",
            "{name: a, kind: directory, path: \"\\UFFFFFFFF\", more: s3cret}",
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused_in_one_line_without_any_value(self, entry: str) -> None:
        with pytest.raises(ConfigError) as refusal:
            destinations.parse(f"- {{name: fine, kind: directory, path: /fine}}\n- {entry}")
        words = str(refusal.value)
        assert words.startswith(("entry 2: ", "it is not YAML"))
        assert "s3cret" not in words
        assert "\n" not in words

    def test_what_is_no_list_is_refused(self) -> None:
        for text in ("{name: a}", "a: *b", "x" * 300_000, "!!python/object:os.system {}", "\x00"):
            with pytest.raises(ConfigError):
                destinations.parse(text)

    def test_a_name_that_is_given_twice_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="entry 2: there is another one of the same name"):
            destinations.parse("[{name: a, kind: directory, path: /x}, {name: a, kind: directory, path: /y}]")

    def test_a_secret_may_come_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("s3cret\n")
        entry = f"[{{name: a, kind: https, url: 'https://h/', token_file: {tmp_path}/token}}]"
        [found] = destinations.parse(entry)
        assert vars(found)["_authorization"] == "Bearer s3cret"
        (tmp_path / "token").write_bytes(b"\xff")
        with pytest.raises(ConfigError, match="entry 1: the file of a secret is not text"):
            destinations.parse(entry)

    def test_the_example_of_the_documents_is_one(self) -> None:
        text = (Path(__file__).resolve().parents[2] / "docs/configuration.md").read_text()
        [example] = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "kind: sftp" in block]
        assert [(one.name, one.kind) for one in destinations.parse(example)] == [
            ("archive", "directory"), ("bucket", "s3"), ("auditor", "sftp"), ("portal", "https"),
        ]  # fmt: skip

    def test_nothing_configured_is_nothing(self) -> None:
        assert destinations.parse("") == destinations.parse("[]") == []


@pytest.mark.usefixtures("db")
class TestADirectory:
    def test_it_gets_the_file_whole_and_nothing_else(self, file: Path, place: Path) -> None:
        destinations.deliver("archive", [file])
        [found] = place.iterdir()
        assert found.read_bytes() == file.read_bytes()
        assert stat.S_IMODE(found.stat().st_mode) & 0o027 == 0

    def test_a_file_that_is_there_already_is_delivered_once(self, file: Path, place: Path) -> None:
        destinations.deliver("archive", [file])
        before = (place / file.name).stat()
        destinations.deliver("archive", [file])
        assert (place / file.name).stat().st_ino == before.st_ino
        assert models.Destination.objects.count() == 0, "not published: nothing to note it on"

    @pytest.mark.parametrize("other", [b"", b"x" * 500_000, b"short"], ids=["empty", "same-size", "short"])
    def test_other_content_under_the_name_is_left_as_it_is(self, file: Path, place: Path, other: bytes) -> None:
        (place / file.name).write_bytes(other)
        with pytest.raises(Differs, match=f"another file named {file.name} already"):
            destinations.deliver("archive", [file])
        assert (place / file.name).read_bytes() == other
        assert len(list(place.iterdir())) == 1

    @pytest.mark.parametrize(
        "make", [lambda p: p.symlink_to("/etc/passwd"), Path.mkdir, os.mkfifo], ids=["link", "folder", "pipe"]
    )
    def test_what_is_no_plain_file_is_neither_followed_nor_replaced(
        self, file: Path, place: Path, make: Callable[[Path], None]
    ) -> None:
        make(place / file.name)
        with pytest.raises(DeliveryFailed):
            destinations.deliver("archive", [file])
        assert not (place / file.name).is_file() or (place / file.name).is_symlink()

    def test_a_folder_that_is_missing_is_never_made(self, file: Path, place: Path) -> None:
        place.rmdir()
        with pytest.raises(DeliveryFailed, match="the folder does not exist; is the share mounted"):
            destinations.deliver("archive", [file])
        assert not place.exists()

    def test_a_full_disk_leaves_nothing_half_written(
        self, file: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(number: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(directory.os, "fsync", full)
        with pytest.raises(DeliveryFailed, match="no space left"):
            destinations.deliver("archive", [file])
        assert list(place.iterdir()) == []
        monkeypatch.undo()

    def test_a_share_without_hard_links_gets_it_by_a_rename(
        self, file: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def link(*_: Any) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(directory.os, "link", link)
        destinations.deliver("archive", [file])
        destinations.deliver("archive", [file])
        assert [path.name for path in place.iterdir()] == [file.name]

    def test_leftovers_of_a_killed_worker_go_after_a_day_and_not_before(self, file: Path, place: Path) -> None:
        old, young, other = (
            place / f".a.csv.{'0a' * 8}.part",
            place / f".b.csv.{'0b' * 8}.part",
            place / ".somebody-elses.part",
        )
        for path in (old, young, other):
            path.touch()
        for path in (old, other):
            os.utime(path, (time.time() - 90_000,) * 2)
        destinations.deliver("archive", [file])
        assert {path.name for path in place.iterdir()} == {young.name, other.name, file.name}

    def test_a_name_that_could_leave_the_folder_is_refused(self, tmp_path: Path, place: Path) -> None:
        hidden = tmp_path / ".hidden"
        hidden.touch()
        with pytest.raises(DeliveryFailed, match="a name that not every destination can take"):
            destinations.deliver("archive", [hidden])

    def test_a_file_whose_time_is_over_is_given_up(self, file: Path, place: Path) -> None:
        [chosen] = destinations.configured()
        content = file.read_bytes()
        late = Sending(file, file.name, len(content), sha256(content).hexdigest(), until=time.monotonic() - 1)
        with pytest.raises(DeliveryFailed, match="within 25 minutes"):
            chosen.put(late)
        assert list(place.iterdir()) == []


@pytest.mark.usefixtures("db")
class TestWhatBecameOfIt:
    def test_files_go_in_their_order_and_stop_at_the_first_that_fails(self, file: Path, place: Path) -> None:
        manifest = file.with_name(f"{file.name}.manifest.json")
        manifest.write_text("{}")
        (place / file.name).write_text("something else")
        with pytest.raises(Differs):
            destinations.deliver("archive", [file, manifest])
        assert not (place / manifest.name).exists(), "a manifest never arrives before its file"
        (place / file.name).unlink()
        destinations.deliver("archive", [file, manifest])
        assert (place / manifest.name).read_text() == "{}"

    def test_the_table_says_what_is_configured_and_how_it_goes(self, file: Path, place: Path) -> None:
        tasks.publish_destinations()
        row = models.Destination.objects.get()
        assert (row.name, row.kind, row.place, row.failures) == ("archive", "directory", str(place), 0)
        place.rename(place.with_name("away"))
        for _ in range(2):
            with pytest.raises(DeliveryFailed):
                destinations.deliver("archive", [file])
        row.refresh_from_db()
        assert (row.failures, row.error) == (2, "the folder does not exist; is the share mounted?")
        place.with_name("away").rename(place)
        destinations.publish()
        row.refresh_from_db()
        assert row.failures == 2, "to publish it again says nothing of how it does"
        destinations.deliver("archive", [file])
        row.refresh_from_db()
        assert (row.failures, row.error, row.reached_at == row.tried_at) == (0, "", True)

    def test_one_that_is_configured_no_more_leaves_the_table(self, place: Path, settings: Any) -> None:
        destinations.publish()
        settings.MUNIMENT_DESTINATIONS = "[{name: other, kind: directory, path: /nowhere}]"
        destinations.publish()
        assert list(models.Destination.objects.values_list("name", flat=True)) == ["other"]

    def test_another_place_under_the_same_name_starts_anew(self, file: Path, place: Path, settings: Any) -> None:
        destinations.publish()
        destinations.deliver("archive", [file])
        settings.MUNIMENT_DESTINATIONS = "[{name: archive, kind: directory, path: /elsewhere}]"
        destinations.publish()
        row = models.Destination.objects.get()
        assert (row.place, row.reached_at) == ("/elsewhere", None)

    def test_a_destination_that_is_gone_is_said(self, file: Path, settings: Any) -> None:
        settings.MUNIMENT_DESTINATIONS = ""
        with pytest.raises(DeliveryFailed, match="no destination named archive is configured"):
            destinations.deliver("archive", [file])

    def test_a_configuration_that_went_bad_is_said_without_what_is_in_it(self, file: Path, settings: Any) -> None:
        settings.MUNIMENT_DESTINATIONS = "[{name: archive, kind: directory, path: s3cret}]"
        with pytest.raises(DeliveryFailed, match="cannot be read: entry 1: path must be") as caught:
            destinations.deliver("archive", [file])
        assert "s3cret" not in str(caught.value)

    def test_a_mistake_of_ours_is_a_failure_and_says_nothing_of_what_it_held(
        self, file: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def mistaken(*_: Any) -> None:
            raise RuntimeError("s3cret")

        monkeypatch.setattr(directory.Directory, "put", mistaken)
        with pytest.raises(DeliveryFailed, match=r"^it failed \(RuntimeError\)$"):
            destinations.deliver("archive", [file])
        assert "s3cret" not in caplog.text
