"""Muniment for backends and auditors: statements, Merkle proofs and their verification, without Django.

`statements` is the canonical JSON that is hashed, `merkle` the tree over it, `batches` the signed chain of
what the writers added, `disclosures` the salted personal details that stand beside a statement. All of it is
pure: no network, no files, no settings.
"""

__version__ = "0.1.0"
