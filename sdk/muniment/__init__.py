"""Muniment for backends and auditors: statements, Merkle proofs and their verification, without Django.

`statements` is the canonical JSON that is hashed, `disclosures` the salted personal details that stand beside a
statement, `batches` the signed chain of what the writers added, `merkle` and `tiles` the tree over it, `notes`,
`checkpoints` and `proofs` its signed heads (C2SP), `keys` whom to trust, `policy` the rules replayed from the log,
`examine` and `findings` what a verification looks at and can find. All of these are pure: no network, no files, no
settings. `bundle`, `verify`, `cli` and `witness` are what an auditor runs.
"""

__version__ = "0.1.0"
