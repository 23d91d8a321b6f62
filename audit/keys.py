"""Publishing the keys that Muniment signs with, and telling the log: every key comes into the log by a `key` record,
signed by a key that was trusted before it (`muniment.keys`), so that the database's table alone makes no key good."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.db import transaction
from django.utils import timezone

from audit.models import Outbox, PublishedKey
from muniment.keys import introduce, thumbprint


def public_of(private: Ed25519PrivateKey) -> bytes:
    """The raw public key, 32 bytes."""
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def publish(private: Ed25519PrivateKey, use: str) -> str:
    """Publish a process's own key, where it is not yet, and return its id. A key that nobody introduced before
    introduces itself: that proves possession, and makes nobody trust it."""
    public = public_of(private)
    announce(private, use, public)
    return thumbprint(public)


def announce(signer: Ed25519PrivateKey, use: str, public: bytes) -> bool:
    """Publish a key, introduced by `signer`, with its `key` record; False when it was published already. Another's key
    is introduced even then: it may have published itself, which makes nobody trust it."""
    with transaction.atomic():
        _, new = PublishedKey.objects.get_or_create(key_id=thumbprint(public), defaults={"use": use, "public": public})
        if new or public != public_of(signer):
            _record(introduce(signer, use, public))
    return new


def retire(signer: Ed25519PrivateKey, key: PublishedKey) -> None:
    """From now on nothing new may be signed with this key. What it signed before stays valid."""
    with transaction.atomic():
        key.not_after = timezone.now()
        key.save(update_fields=["not_after"])
        _record(introduce(signer, key.use, bytes(key.public), retired=True))


def _record(members: dict[str, object]) -> None:
    Outbox.objects.create(kind="key", members=members, at=timezone.now(), actor="system", xact="")
