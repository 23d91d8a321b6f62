"""A bucket as an anchor (S3, or a server that speaks it), with object lock: what was put there cannot be deleted by
anybody until its time is over."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from audit.anchors.base import (
    MAX_NOTE,
    SECONDS,
    Anchor,
    AnchorError,
    ConfigError,
    Submission,
    check_parts,
    compare,
    file_of,
    folder_of,
    is_loopback,
    number,
    options,
    path_of,
    size_of,
)

Found = TypeVar("Found")
MAX_AHEAD = 1000  # one page of a listing: that the anchor is ahead is seen from the first, how far does not matter
_EXISTS = ("PreconditionFailed", "ConditionalRequestConflict")
_NO_CONDITION = ("NotImplemented",)


class Bucket(Anchor):
    """`s3://bucket/prefix?endpoint=URL&region=R&retain_days=N`. Credentials come from the usual AWS environment of the
    worker. With `retain_days` each object is locked (COMPLIANCE mode) for so long; the bucket must have object lock.

    The versions of objects are read, not the objects alone: whoever may write there could otherwise hide one behind a
    delete marker or a newer version."""

    kind = "s3"

    def __init__(self, name: str, bucket: str, prefix: str, retain_days: int, **client: str | None) -> None:
        super().__init__(name)
        self._bucket, self._prefix, self._retain_days, self._client_options = bucket, prefix, retain_days, client

    @classmethod
    def parse(cls, parts: SplitResult) -> "Bucket":
        """From an entry of MUNIMENT_ANCHORS. Raises ConfigError."""
        check_parts(parts)
        given = options(parts, "endpoint", "region", "retain_days")
        bucket, prefix = parts.netloc, path_of(parts).strip("/")
        if not bucket or not bucket.isascii() or not bucket.isprintable() or ":" in bucket:
            raise ConfigError("it must be s3://bucket/prefix")
        retain_days = number(given.get("retain_days", "0"), "retain_days", 0, 36500)
        endpoint = given.get("endpoint")
        name = f"s3://{bucket}/{prefix}".rstrip("/") + (f" at {_place(endpoint)}" if endpoint else "")
        return cls(name, bucket, prefix, retain_days, endpoint_url=endpoint, region_name=given.get("region"))

    def send(self, submission: Submission) -> str:
        """Put the note under a name that says its content; an object that is there is left as it is."""
        checkpoint = submission.checkpoint
        folder, name = self._folder(checkpoint.origin), file_of(checkpoint)
        # Names sort by size: what is as large or larger comes after the last name of the size before.
        after = f"{folder}{checkpoint.size - 1:020}-~" if checkpoint.size else folder
        names = (key.removeprefix(folder) for key, _ in islice(self._versions(folder, after), MAX_AHEAD))
        newest = max((name for name in names if size_of(name) is not None), default=None)
        if not compare(checkpoint, newest):
            _asked(lambda: self._put(folder + name, submission.note))
        return ""

    def held(self, origin: str) -> Iterator[str]:
        """Read back every version of every object."""
        folder = self._folder(origin)
        found = [one for one in self._versions(folder, "") if size_of(one[0].removeprefix(folder)) is not None]
        for key, version in reversed(found):
            yield _asked(lambda key=key, version=version: self._get(key, version))  # type: ignore[misc]

    def _folder(self, origin: str) -> str:
        return f"{self._prefix}/{folder_of(origin)}/".lstrip("/")

    def _put(self, key: str, note: str) -> None:
        from botocore.exceptions import ClientError

        lock: dict[str, object] = {}
        if self._retain_days:
            until = datetime.now(UTC) + timedelta(days=self._retain_days)
            lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until}
        what = {"Bucket": self._bucket, "Key": key, "Body": note.encode(), "ContentType": "text/plain; charset=utf-8"}
        try:
            self._client.put_object(**what, **lock, IfNoneMatch="*")
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _NO_CONDITION:  # an older server; versions keep what was there
                self._client.put_object(**what, **lock)
            elif code not in _EXISTS:  # another worker was faster, with the same note
                raise

    def _get(self, key: str, version: str) -> str:
        which = {} if version == "null" else {"VersionId": version}
        with self._client.get_object(Bucket=self._bucket, Key=key, **which)["Body"] as body:
            return str(body.read(MAX_NOTE).decode("utf-8", "replace"))

    def _versions(self, folder: str, after: str) -> Iterator[tuple[str, str]]:
        """Key and version of the objects in a folder, in the order of their keys."""
        pages = self._client.get_paginator("list_object_versions").paginate(
            Bucket=self._bucket, Prefix=folder, **({"KeyMarker": after} if after else {})
        )
        listing = iter(pages)
        while page := _asked(lambda: next(listing, None)):
            for one in page.get("Versions", []):
                yield one["Key"], one.get("VersionId") or "null"

    @cached_property
    def _client(self) -> Any:
        # Imported here: it takes long, and of all processes only the worker and the verifier need it.
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=SECONDS / 2,
            read_timeout=SECONDS / 2,
            retries={"total_max_attempts": 1},  # the next run is the next attempt
            # Other servers than Amazon's are reached by path, and not all know its newest checksums.
            s3={"addressing_style": "path" if self._client_options["endpoint_url"] else "auto"},
        )
        return _asked(lambda: boto3.session.Session().client("s3", config=config, **self._client_options))


def _place(endpoint: str) -> str:
    """Host and port of an endpoint. Raises ConfigError."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        raise ConfigError("its endpoint cannot be read") from None
    check_parts(parts)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise ConfigError("its endpoint must be https, or http on this machine")
    if not parts.hostname or parts.query or parts.path not in ("", "/") or not parts.netloc.isprintable():
        raise ConfigError("its endpoint must be a host and a port")
    return f"{parts.hostname}:{port}" if port else parts.hostname


def _asked(call: Callable[[], Found]) -> Found:
    """What a call to the server gives. Raises AnchorError, which quotes the server's error code and nothing else."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return call()
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        code = code if code.isalnum() and len(code) < 60 else "an error of its own"
        raise AnchorError(f"the bucket's server refused: {code}") from None
    except (BotoCoreError, OSError, ValueError) as error:
        raise AnchorError(f"the bucket cannot be reached ({type(error).__name__})") from None
