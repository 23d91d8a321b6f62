"""What a verification can find, by code: the registry that the live check, the offline verifier, the sealer, the admin
and the tests share."""

from dataclasses import dataclass

CODES = {
    "record-changed": "A record was changed after it was sealed or signed.",
    "record-missing": "A record is gone, and no retention record accounts for it.",
    "record-inserted": "A record stands in the log that was not written by it.",
    "record-unsigned": "A record has no write batch: no writer signed it.",
    "record-moved": "A record stands at another place than it was sealed at.",
    "record-backdated": "A record's time is not after that of the record before it.",
    "record-malformed": "A record's bytes are not a statement.",
    "column-differs": "A searchable column says something else than the record's statement.",
    "batch-unsigned": "A write batch does not bear its writer's signature.",
    "batch-key-untrusted": "A write batch is signed by a key that no trusted key introduced.",
    "batch-key-retired": "A write batch is signed by a key that was retired before it.",
    "batch-chain-broken": "A write batch does not follow from the one before it: one was taken out or put in.",
    "batch-root-differs": "The records of a write batch are not those that its writer signed.",
    "batch-missing": "A write batch is gone.",
    "tile-differs": "A stored hash of the tree is not the one that the records give.",
    "checkpoint-unsigned": "A checkpoint does not bear a valid signature.",
    "checkpoint-untrusted": "A checkpoint is signed by a key that is not trusted.",
    "root-differs": "The records do not give the root that was signed.",
    "fork": "Two different roots were signed for one size of the log.",
    "rollback": "The log is shorter than a checkpoint that somebody holds: cut off, or an old copy put back.",
    "cut-off": "Records that were sealed are gone from the end of the log.",
    "anchor-differs": "An anchor holds a checkpoint that this log does not lead to.",
    "disclosure-missing": "The protected details of a record are gone, and nothing accounts for it.",
    "disclosure-foreign": "The protected details beside a record are not those that its statement commits to.",
    "key-destroyed": "The key of protected details is gone, and no erasure record accounts for it.",
    "subject-swapped": "A user's entry does not hold the identifiers that it is found by.",
    "policy-version-missing": "A version of the policy has no record.",
    "policy-unexplained": "A decision was made from a policy that the policy records do not give.",
    "policy-version-falls": "A decision was made from an older policy than one before it.",
    "policy-malformed": "A policy record does not follow from those before it.",
    "keeping-unexplained": "A legal hold, a retention rule or a floor is not what its records tell.",
    "range-narrowed": "The bundle does not cover the range that was asked for.",
    "bundle-truncated": "Part of the bundle is missing.",
    "bundle-malformed": "Part of the bundle cannot be read.",
    "proof-broken": "A proof does not lead to the signed root.",
    "keys-untrusted": "No key that you trust was given, so nothing is proved yet.",
    "checkpoint-incomparable": "The bundle cannot be compared with a checkpoint that you hold.",
    "seam-broken": "A log was closed and the next opened, but the record of it does not account for both.",
    "receipt-malformed": "A receipt that was kept cannot be read.",
    "receipt-broken": "A receipt that was kept does not lead to what a writer signed.",
    "receipt-untimely": "A receipt is signed by a key that was not valid when it was answered.",
    "export-malformed": "The manifest of an export cannot be read.",
    "export-unsigned": "The manifest of an export does not bear a valid signature.",
    "export-untrusted": "The manifest of an export is signed by a key that is not trusted.",
    "export-missing": "The file that a manifest is of cannot be read.",
    "export-changed": "A file is not the one that was exported.",
    "export-differs": "An export is not what its manifest says.",
    "receipt-contradicted": "A call was answered with a receipt, and the log does not have it as it was answered.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold. `index` is the record's, where it is about one; `message` is one line without
    personal data. ValueError for a code that the registry does not know."""

    code: str
    message: str
    index: int | None = None

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"not a finding: {self.code}")

    @property
    def line(self) -> str:
        """As it is printed: code, then the words."""
        return f"{self.code}: {self.message}"


def counted(number: int, thing: str) -> str:
    """`1 record`, `80,000 records`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
