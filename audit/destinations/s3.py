"""A bucket as a destination: S3, or a server that speaks it, through django-storages."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from audit.configured import ConfigError, Fields
from audit.destinations.base import (
    CHUNK,
    CONNECT_SECONDS,
    SILENT_SECONDS,
    DeliveryFailed,
    Destination,
    Differs,
    Sending,
    is_loopback,
    same,
)

# Each creates an object; with this both refuse to replace one (conditional writes; RFC 9110 section 13.1.2).
_CREATING = ("before-parameter-build.s3.PutObject", "before-parameter-build.s3.CompleteMultipartUpload")
_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict")
_WORDS = {
    "NoSuchBucket": "there is no such bucket",
    "404": "there is no such bucket",
    "AccessDenied": "the credentials may not write to the bucket",
    "AllAccessDisabled": "the credentials may not write to the bucket",
    "403": "the credentials are wrong, or may not write to the bucket",
    "InvalidAccessKeyId": "the credentials are not known there",
    "SignatureDoesNotMatch": "the credentials are wrong",
    "ExpiredToken": "the credentials have expired",
    "PermanentRedirect": "the bucket is in another region than the one that is configured",
    "AuthorizationHeaderMalformed": "the bucket is in another region than the one that is configured",
    "RequestTimeTooSkewed": "the clock of the worker's machine is wrong",
    "QuotaExceeded": "the bucket has no space left",
    "InsufficientStorage": "the bucket has no space left",
    "XMinioStorageFull": "the bucket has no space left",
    "XMinioAdminBucketQuotaExceeded": "the bucket has no space left",
    "507": "the bucket has no space left",
    "EntityTooLarge": "the file is larger than the bucket takes",
    "SlowDown": "the bucket's server is overloaded",
    "503": "the bucket's server is overloaded",
}


class Bucket(Destination):
    """`bucket`, `prefix`, `endpoint`, `region`, `access_key` and `secret_key`; without keys the worker's own AWS
    environment has them."""

    kind = "s3"

    def __init__(self, name: str, place: str, **options: Any) -> None:
        super().__init__(name, place)
        self._options = options

    @classmethod
    def parse(cls, name: str, given: Fields) -> "Bucket":
        """From an entry of MUNIMENT_DESTINATIONS. Raises ConfigError."""
        bucket, prefix = given.text("bucket"), given.text("prefix", "").strip("/")
        endpoint, region = given.text("endpoint", ""), given.text("region", "")
        access, secret = given.secret("access_key", ""), given.secret("secret_key", "")
        if not bucket.isascii() or not bucket.replace("-", "").replace(".", "").isalnum():
            raise ConfigError("bucket must be the name of a bucket")
        if ".." in prefix.split("/") or "\\" in prefix:
            raise ConfigError("prefix cannot be one")
        if bool(access) != bool(secret):
            raise ConfigError("access_key and secret_key belong together")
        place = f"s3://{bucket}/{prefix}".rstrip("/") + (f" at {_host(endpoint)}" if endpoint else "")
        return cls(
            name, place, bucket_name=bucket, location=prefix, endpoint_url=endpoint or None,
            region_name=region or None,
            # With keys of its own, what the environment has of a session is not of theirs.
            **({"access_key": access, "secret_key": secret, "security_token": None} if access else {}),
        )  # fmt: skip

    def put(self, sending: Sending) -> None:
        """Uploaded on the condition that nothing has the name; in parts where it is large."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._put(sending)
        except ClientError as error:
            raise DeliveryFailed(_refusal(error)) from None
        except BotoCoreError as error:
            raise DeliveryFailed(_unreachable(error)) from None
        except DeliveryFailed:
            raise
        except (OSError, ValueError) as error:
            raise DeliveryFailed(f"the bucket cannot be reached ({type(error).__name__})") from None
        except Exception as error:  # s3transfer's own; what it says may quote the server
            raise DeliveryFailed(f"the upload failed ({type(error).__name__})") from None

    def _put(self, sending: Sending) -> None:
        from botocore.exceptions import ClientError
        from django.core.files import File

        for conditional in (True, False):
            storage = self._storage(conditional)
            if self._is_there(storage, sending):
                return
            try:
                with sending.open() as source:
                    timed: Any = _Timed(source, sending)
                    storage.save(sending.name, File(timed, sending.name))
            except ClientError as error:
                code = _code(error)
                if code in _TAKEN and self._is_there(storage, sending):
                    return
                if not conditional or code not in ("NotImplemented", "501"):
                    raise
                continue  # a server that does not know conditions: having looked is nearly as good
            if storage.size(sending.name) != sending.size:
                raise DeliveryFailed("the bucket has the file with another size than it was sent with")
            return

    def _is_there(self, storage: Any, sending: Sending) -> bool:
        """Whether the very file has the name: read back, for what the object says of itself proves nothing."""
        if not storage.exists(sending.name):
            return False
        if storage.size(sending.name) != sending.size:
            raise Differs(sending.name)
        body = storage.bucket.Object(storage._normalize_name(sending.name)).get()["Body"]
        with body:
            if not same(sending, _pieces(body)):
                raise Differs(sending.name)
        return True

    def _storage(self, conditional: bool) -> Any:
        # Imported here: it takes long, and of all processes only the worker needs it.
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config
        from storages.backends.s3 import S3Storage

        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=SILENT_SECONDS,
            retries={"total_max_attempts": 2},
            # Other servers than Amazon's are reached by path, and not all know its newest checksums.
            s3={"addressing_style": "path" if self._options["endpoint_url"] else "auto"},
            request_checksum_calculation="when_required",
        )
        storage = S3Storage(
            client_config=config, file_overwrite=True, default_acl=None, gzip=False,
            transfer_config=TransferConfig(use_threads=False), **self._options,
        )  # fmt: skip
        if conditional:
            for event in _CREATING:
                storage.connection.meta.client.meta.events.register(event, _only_new)
        return storage


class _Timed:
    """A file that is read until its time is over."""

    def __init__(self, file: Any, sending: Sending) -> None:
        self._file, self._sending = file, sending

    def read(self, size: int = -1) -> bytes:
        self._sending.check_time()
        found: bytes = self._file.read(size)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _only_new(params: dict[str, Any], **_: Any) -> None:
    params["IfNoneMatch"] = "*"


def _pieces(body: Any) -> Iterator[bytes]:
    while piece := body.read(CHUNK):
        yield piece


def _host(endpoint: str) -> str:
    """Host and port of an endpoint. Raises ConfigError."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        raise ConfigError("endpoint cannot be read") from None
    if "@" in parts.netloc:
        raise ConfigError("endpoint must not have credentials in it")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise ConfigError("endpoint must be https, or http on this machine")
    if not parts.hostname or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ConfigError("endpoint must be a host and a port")
    return f"{parts.hostname}:{port}" if port else parts.hostname


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _refusal(error: Any) -> str:
    code = _code(error)
    if code in _TAKEN:
        return "somebody else writes the same name at this moment"
    if code in _WORDS:
        return _WORDS[code]
    quoted = code if code.isascii() and code.isalnum() and len(code) < 40 else "an error of its own"
    return f"the bucket's server refused: {quoted}"


def _unreachable(error: Any) -> str:
    name = type(error).__name__
    if "Timeout" in name:
        return "the bucket's server did not answer in time"
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return "the worker has no credentials for the bucket"
    if name in ("SSLError",):
        return "TLS to the bucket's server failed: its certificate is not one that this machine trusts"
    return f"the bucket's server cannot be reached ({name})"
