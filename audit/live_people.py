"""Whether the protected details beside the records, and the users' entries, are those that the log commits to."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings

from audit import subjects
from audit.entries import LOOKUPS, lookup
from audit.models import DataKey, Record, Subject
from audit.protection import KeyDestroyed, KeyRing, reveal
from muniment import disclosures
from muniment.disclosures import DisclosureError
from muniment.findings import Finding

PAGE = 1000
USER = "usr_"  # how uids begin; the holders of other keys are no users


class People:
    """Examines disclosures record by record, then keys and users. `opened` tells whether this process has the key that
    opens protected details; without it only what is there, and what is gone, can be told."""

    def __init__(self, report: Callable[[Finding], None]) -> None:
        self._report = report
        self.opened = {"KEY_ENCRYPTION_KEY", "PEPPER"} <= set(settings.MUNIMENT_KEYS)
        self._ring = KeyRing()
        self._first: dict[str, int] = {}  # holder -> the first record that has details under its key
        self._subs: dict[str, bytes] = {}  # uid -> digest of the `sub` that its first record discloses
        self._stripped: list[tuple[int, str | None]] = []
        self._unhashed: list[tuple[int, str | None, str]] = []  # index, user, and the hash that is not there

    def record(self, record: Record, said: dict[str, Any]) -> None:
        """One record, whose statement is what was sealed."""
        committed = said.get("_sd") or []
        if record.disclosures is None:
            if committed:
                self._stripped.append((record.index, _text(said.get("subject"))))
            return
        if record.holder is None or not committed:
            self._find("disclosure-foreign", record.index, "has details that its statement does not commit to")
            return
        if not _own(record.holder, said):
            self._find("disclosure-foreign", record.index, "has its details under the key of somebody else")
        self._first.setdefault(record.holder, record.index)
        if self.opened and (key := self._key(record.holder)):
            self._open(record, key, committed)

    def finish(self, erased: set[str], retained: Callable[[int], bool]) -> None:
        """What needs the whole log: keys that are gone, details that were taken away, users."""
        holders = list(self._first)
        for start in range(0, len(holders), PAGE):
            page = holders[start : start + PAGE]
            there = set(DataKey.objects.filter(holder__in=page).values_list("holder", flat=True))
            for holder in page:
                if holder not in there and holder not in erased:
                    words = f"the key of {holder!a} is gone, and no erasure record accounts for it"
                    self._report(Finding("key-destroyed", words, self._first[holder]))
            users = {holder for holder in page if holder.startswith(USER)}
            for holder in sorted(
                users - set(Subject.objects.filter(uid__in=page).values_list("uid", flat=True)) - erased
            ):
                words = f"the entry of user {holder!a} is gone, and no erasure record accounts for it"
                self._report(Finding("subject-swapped", words, self._first[holder]))
        for index, subject in self._stripped:
            if subject not in erased and not retained(index):
                self._find("disclosure-missing", index, "has lost its protected details")
        self.unhashed(erased.__contains__)
        if self.opened:
            self._users(erased)

    def unhashed(self, erased: Callable[[str | None], bool]) -> None:
        """The records whose keyed hashes are gone, of users who were not erased. Part of `finish`, or the end of it
        where single records were looked at."""
        for index, subject, column in self._unhashed:
            if not erased(subject):
                self._hashed_otherwise(index, column)

    # --- one record ---------------------------------------------------------------------------------------

    def _key(self, holder: str) -> AESGCM | None:
        try:
            return self._ring.get(holder)
        except KeyDestroyed:
            return None
        except InvalidTag:
            if holder in self._first:
                words = f"the key that is stored for {holder!a} is another's"
                self._report(Finding("subject-swapped", words, self._first[holder]))
            return None

    def _open(self, record: Record, key: AESGCM, committed: list[str]) -> None:
        try:
            found = disclosures.unpack(reveal(key, bytes(record.disclosures or b""), bytes(record.leaf)))
        except (InvalidTag, DisclosureError):
            self._find("disclosure-foreign", record.index, "has details that do not open under its user's key")
            return
        if disclosures.digests(found) != sorted(committed):
            self._find("disclosure-foreign", record.index, "has details that its statement does not commit to")
            return
        self._columns(record, {one.name: one.value for one in found})

    def _columns(self, record: Record, private: dict[str, Any]) -> None:
        """The keyed hashes by which a record is found, and the user that it is of."""
        expected = {column: lookup(name, private[name]) for name, column in LOOKUPS.items() if name in private}
        if isinstance(resource := private.get("resource"), dict):
            expected["resource_key"] = lookup("resource", f"{resource['type']}\x00{resource['id']}")
        if record.subject is not None and isinstance(sub := private.get("sub"), str):
            self._same(record.index, record.subject, sub)
        for column in (*LOOKUPS.values(), "resource_key"):
            stored = getattr(record, column)
            if (bytes(stored) if stored is not None else None) == expected.get(column):
                continue
            if stored is None:  # of one who was erased, also while we were at it, that is as it must be
                self._unhashed.append((record.index, record.subject, column))
            else:
                self._hashed_otherwise(record.index, column)

    def _hashed_otherwise(self, index: int, column: str) -> None:
        self._find("column-differs", index, f"is found by another {column} than it has")

    def _same(self, index: int, uid: str, sub: str) -> None:
        """One uid is one user for ever; what the entry of the user says is compared in the end."""
        digest = _digest(sub)
        if self._subs.setdefault(uid, digest) != digest:
            self._find("subject-swapped", index, f"is of another user than the records of {uid} before it")

    # --- users --------------------------------------------------------------------------------------------

    def _users(self, erased: set[str]) -> None:
        after = ""
        while page := list(Subject.objects.filter(uid__gt=after).order_by("uid")[:PAGE]):
            for user in page:
                if user.uid not in erased and not _emptied(user):
                    self._user(user)
            after = page[-1].uid

    def _user(self, user: Subject) -> None:
        sub, email = self._read(user, "sub"), self._read(user, "email")
        same = sub is not None and bytes(user.identity_key or b"") == subjects.identity_key(user.issuer, sub)
        same = same and self._subs.get(user.uid) in (None, _digest(sub or ""))
        if email is not None:
            same = same and bytes(user.email_key or b"") == subjects.email_key(email)
        if not same or (user.email_key is not None) != (user.email is not None):
            now = Subject.objects.filter(uid=user.uid).first()
            if now is not None and _emptied(now):
                return  # erased between the look at the entry and the look at its key
            words = f"the entry of user {user.uid} does not hold the identifiers that it is found by"
            self._report(Finding("subject-swapped", words, self._first.get(user.uid)))

    def _read(self, user: Subject, column: str) -> str | None:
        protected = getattr(user, column)
        if protected is None:
            return None
        try:
            key = self._ring.get(user.uid)
            return reveal(key, bytes(protected), subjects.bound(user.uid, column)).decode()
        except (KeyDestroyed, InvalidTag):
            return None

    def _find(self, code: str, index: int, words: str) -> None:
        self._report(Finding(code, f"record {index:,} {words}", index))


def _own(holder: str, said: dict[str, Any]) -> bool:
    """Whether the details of such a record may be under this key: one that was destroyed for another's sake would hide
    them."""
    subject = _text(said.get("subject"))
    called = said.get("type") in ("decision", "evaluation", "introspection", "outcome")
    return holder == subject or not (holder.startswith(USER) or (subject and called))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _emptied(user: Subject) -> bool:
    """Whether nothing is left by which the user could be found: the record of the erasure may still be on its way."""
    held = (user.identity_key, user.sub, user.email, user.email_key)
    return user.erased_at is not None and all(one is None for one in held)


def _digest(sub: str) -> bytes:
    """Enough to tell one `sub` from another, in little memory."""
    return sha256(sub.encode()).digest()[:16]
