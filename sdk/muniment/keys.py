"""Keys: their ids, how one key introduces or retires another in the log, and whom a verifier trusts."""

from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from muniment import batches, notes, statements

USES = ("writer", "log", "export", "assertion")
"""What a key signs: write batches, checkpoints, exports, assertions about callers."""

MAX_BYTES = 1 << 20
"""How long a document of trusted keys may be."""

_PUBLISHED, _RETIRED = "key.published", "key.retired"
_PREFIXES = {_PUBLISHED: b"muniment/key/v1\0", _RETIRED: b"muniment/key-retired/v1\0"}
_MEMBERS = ("action", "use", "key_id", "public", "by", "signature")


class TrustError(ValueError):
    """Not a document of trusted keys. Names the line or key by its number, never its text."""


def thumbprint(public: bytes) -> str:
    """The id of a raw Ed25519 public key of 32 bytes: its RFC 7638 thumbprint (RFC 8037, 2), base64url."""
    members = f'{{"crv":"Ed25519","kty":"OKP","x":"{_base64url(public)}"}}'
    return _base64url(sha256(members.encode("ascii")).digest())


def introduce(private: Ed25519PrivateKey, use: str, public: bytes, retired: bool = False) -> dict[str, object]:
    """The members of a `key` statement, without `type`: the owner of `private` says that `public` is a key for `use`.

    `retired`: that it is one no longer. Raises ValueError for a use or a length of key that cannot be.
    """
    if use not in USES or len(public) != 32:
        raise ValueError("no such use of a key, or not a public key of 32 bytes")
    action = _RETIRED if retired else _PUBLISHED
    return {
        "action": action,
        "use": use,
        "key_id": thumbprint(public),
        "public": b64encode(public).decode("ascii"),
        "by": thumbprint(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)),
        "signature": b64encode(private.sign(_message(action, use, public))).decode("ascii"),
    }


def introduction_holds(statement: Mapping[str, object], by_public: bytes) -> bool:
    """Whether a `key` statement is well-formed and signed by the key that it names as `by`, which is `by_public`.

    Says nothing of whether that key is trusted. Never raises; members that it does not know are ignored.
    """
    members = {name: value for name in _MEMBERS if type(value := statement.get(name)) is str}
    if len(members) != len(_MEMBERS) or members["action"] not in _PREFIXES or members["use"] not in USES:
        return False
    try:
        public, signature = notes.from_base64(members["public"]), notes.from_base64(members["signature"])
    except notes.NoteError:
        return False
    return (
        len(public) == 32
        and members["key_id"] == thumbprint(public)
        and members["by"] == thumbprint(by_public)
        and batches.verify(by_public, _message(members["action"], members["use"], public), signature)
    )


@dataclass(slots=True)
class Trust:
    """Whom a verifier believes. All but the witnesses by key id: id -> raw public key of 32 bytes.

    `witnesses` are by vkey. `retired` holds ids of keys whose retirement was recorded: what they signed before
    it stays valid, so that they are trusted still; who uses them decides by the record's place in the log.
    """

    writers: dict[str, bytes] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    exports: dict[str, bytes] = field(default_factory=dict)
    assertions: dict[str, bytes] = field(default_factory=dict)
    witnesses: dict[str, notes.Key] = field(default_factory=dict)
    retired: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, text: str) -> "Trust":
        """A saved answer of GET /v1/keys (JWKS, RFC 7517), or a vkey a line; `#` begins a comment line.

        A vkey of algorithm 4 is a witness; one of algorithm 1 tells its use by the end of its name: `/writer`,
        `/log`, `/log/<n>`, `/export` or `/assertion`. Raises TrustError for anything else, and for no key at all:
        an empty file must not pass for "no trust given".
        """
        if len(text) > MAX_BYTES:
            raise TrustError(f"the document of trusted keys is longer than {MAX_BYTES} characters")
        trust = cls()
        if text.lstrip().startswith("{"):
            trust._read_jwks(text)
        else:
            trust._read_lines(text)
        if trust == cls():
            raise TrustError("the document of trusted keys holds no key")
        return trust

    def log_keys(self, origin: str) -> list[notes.Key]:
        """The trusted log keys as verifiers of checkpoints of this origin; none for an origin that names no key."""
        try:
            return [notes.Key(origin, notes.ED25519, public) for public in self.logs.values()]
        except notes.NoteError:
            return []

    def learn(self, statement: Mapping[str, object]) -> bool:
        """Take in a `key` statement; True if it taught something.

        Ignored, not refused: what is malformed, not signed by a key that is trusted for the same use, or signed
        by a key retired before (statements come in the log's order), so that a stolen old key opens no door.
        """
        by = statement.get("by")
        if statement.get("type") != "key" or type(by) is not str or by in self.retired:
            return False
        trusted = self._of(statement.get("use"))
        if by not in trusted or not introduction_holds(statement, trusted[by]):
            return False
        key_id = str(statement["key_id"])
        if statement["action"] == _RETIRED:
            news = key_id not in self.retired
            self.retired.add(key_id)
            return news
        if key_id in trusted:
            return False
        trusted[key_id] = notes.from_base64(str(statement["public"]))
        return True

    def copy(self) -> "Trust":
        """Another trust of the same keys, which learns on its own."""
        return Trust(
            dict(self.writers),
            dict(self.logs),
            dict(self.exports),
            dict(self.assertions),
            dict(self.witnesses),
            set(self.retired),
        )

    def _of(self, use: object) -> dict[str, bytes]:
        held = {"writer": self.writers, "log": self.logs, "export": self.exports, "assertion": self.assertions}
        return held.get(use, {}) if type(use) is str else {}

    def _read_jwks(self, text: str) -> None:
        try:
            document = statements.load(text.encode())
        except ValueError:
            document = None
        keys = document.get("keys") if type(document) is dict else None
        if type(keys) is not list:
            raise TrustError("the document of trusted keys is no JWKS")
        for number, jwk in enumerate(keys, 1):
            public = _jwk_public(jwk)
            if public is None or jwk.get("kid") != thumbprint(public) or jwk.get("use") not in USES:
                raise TrustError(f"key {number} of the JWKS is not an Ed25519 key with its thumbprint as id and a use")
            self._of(jwk["use"])[jwk["kid"]] = public

    def _read_lines(self, text: str) -> None:
        for number, line in enumerate(text.split("\n"), 1):
            vkey = line.strip()
            if not vkey or vkey.startswith("#"):
                continue
            try:
                key = notes.Key.parse(vkey)
            except notes.NoteError as error:
                raise TrustError(f"line {number} of the trusted keys: {error}") from None
            if key.algorithm == notes.COSIGNATURE:
                self.witnesses[key.vkey] = key
                continue
            use = _use_of(key.name)
            if use is None:
                raise TrustError(f"line {number} of the trusted keys: the name does not end in a use of a key")
            self._of(use)[thumbprint(key.public)] = key.public


def _use_of(name: str) -> str | None:
    *before, last = name.split("/")
    if last.isascii() and last.isdigit() and before and before[-1] == "log":  # the log after a loss: <host>/log/2
        *before, last = before
    return last if before and last in USES else None


def _jwk_public(jwk: object) -> bytes | None:
    """The raw public key of an OKP key (RFC 8037, 2); None for anything else."""
    if type(jwk) is not dict or jwk.get("kty") != "OKP" or jwk.get("crv") != "Ed25519" or type(jwk.get("x")) is not str:
        return None
    try:
        public = urlsafe_b64decode(jwk["x"] + "=")
    except ValueError:
        return None
    return public if len(public) == 32 and _base64url(public) == jwk["x"] else None


def _message(action: str, use: str, public: bytes) -> bytes:
    """What is signed: prefix || use || NUL || raw public key. The prefix tells this from other signatures."""
    return _PREFIXES[action] + use.encode("ascii") + b"\0" + public


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
