"""A webhook as a stream: batches of CloudEvents 1.0 that carry OCSF, signed as Standard Webhooks says."""

from collections.abc import Sequence
from hashlib import sha256

import msgspec

from audit import ocsf, webhooks
from audit.configured import ConfigError, Fields
from audit.streams.base import Item, Receiver, Refused, Undelivered
from audit.webhooks import Address, AddressError, Unreachable

MAX_EVENTS = 100
MAX_BYTES = 256 * 1024
"""Of a batch; one event alone may be larger, and is then alone."""
CONTENT_TYPE = "application/cloudevents-batch+json; charset=utf-8"
TYPE = "org.muniment.record."
# With these the receiver says that what was sent cannot be, and so a smaller batch may be taken.
REFUSING = frozenset({400, 413, 422})
WORDS = {
    400: "the receiver says that what it gets is wrong (400)",
    401: "the receiver does not accept the signature or the authorization (401)",
    403: "the receiver forbids it (403)",
    404: "the receiver knows no such address (404)",
    410: "the receiver says that it is gone for good (410)",
    413: "the receiver says that what it gets is too large (413)",
    422: "the receiver cannot work with what it gets (422)",
    429: "the receiver is sent too much (429)",
}
_encode = msgspec.json.Encoder().encode


class Webhook(Receiver):
    """`url`, `secret` (`whsec_...`), and where they are needed `previous_secret`, `authorization` and `ca`."""

    kind = "webhook"
    most = MAX_EVENTS

    def __init__(self, name: str, address: Address, keys: Sequence[bytes], authorization: str) -> None:
        super().__init__(name, address.place)
        self._address, self._keys, self._authorization = address, keys, authorization

    @classmethod
    def parse(cls, name: str, given: Fields) -> "Webhook":
        """From an entry of MUNIMENT_STREAMS. Raises ConfigError."""
        url, secrets = given.text("url"), [given.secret("secret")]
        if previous := given.secret("previous_secret", ""):
            secrets.append(previous)
        authorization = given.secret("authorization", "")
        if not authorization.isascii():
            raise ConfigError("authorization has characters that a header may not have")
        try:
            address = Address(url, given.text("ca", ""))
        except AddressError as error:
            raise ConfigError(str(error)) from None
        try:
            keys = [webhooks.key_of(secret) for secret in secrets]
        except AddressError as error:
            raise ConfigError(f"secret {error}") from None
        return cls(name, address, keys, authorization)

    def send(self, items: Sequence[Item]) -> int:
        """POST one batch: as many as fit."""
        events = _fitting(items)
        body = b"[" + b",".join(events) + b"]"
        last = items[len(events) - 1]
        # The same batch, sent again, has the same id; each event has its record's.
        content = f"{self.name} {items[0].origin} {items[0].index} {last.index} {len(events)}"
        headers = webhooks.signed(self._keys, f"msg_{sha256(content.encode()).hexdigest()[:32]}", webhooks.now(), body)
        headers["Content-Type"] = CONTENT_TYPE
        if self._authorization:
            headers["Authorization"] = self._authorization
        try:
            answer = self._address.post(body, headers)
        except Unreachable as error:
            raise Undelivered(str(error)) from None
        if answer.accepted:
            return len(events)
        words = _words(answer.status)
        if answer.status in REFUSING:
            raise Refused(words, len(events))
        raise Undelivered(words, answer.retry_after)


def _fitting(items: Sequence[Item]) -> list[bytes]:
    """The events of as many as a batch holds, one at least."""
    events: list[bytes] = []
    size = 2
    for item in items[:MAX_EVENTS]:
        event = cloud_event(item)
        size += len(event) + 1
        if events and size > MAX_BYTES:
            break
        events.append(event)
    return events


def cloud_event(item: Item) -> bytes:
    """One record as a CloudEvent in JSON: `id` is the record's, `source` its log, `subject` the user's uid."""
    kind, subject = item.event["metadata"]["event_code"], item.said.get("subject")
    made = {
        "specversion": "1.0", "id": str(item.id), "source": item.origin, "type": TYPE + kind,
        "time": item.at.isoformat().replace("+00:00", "Z"), "datacontenttype": "application/json",
        "dataschema": ocsf.SCHEMA, "sequence": f"{item.index:020}", "data": item.event,
    }  # fmt: skip
    if isinstance(subject, str) and subject:
        made["subject"] = subject
    return _encode(made)


def _words(status: int) -> str:
    if 300 <= status < 400:
        return "the receiver redirects, which is not followed; configure the address that it redirects to"
    return WORDS.get(status, f"the receiver answered {status}")
