"""Muniment for backends and auditors, without Django.

For backends: `Muniment` guards tools (`guard`, `tools`, `calls`, `client`, `errors`), `adapters` brings it into
frameworks, `isolation`, `encryption` and `assertion` carry the verified user on to the data.

For auditors: `statements` is the canonical JSON that is hashed, `disclosures` the salted personal details that
stand beside a statement, `batches` the signed chain of what the writers added, `merkle` and `tiles` the tree over it,
`notes`, `checkpoints` and `proofs` its signed heads (C2SP), `keys` whom to trust, `policy` the rules replayed from the
log, `examine` and `findings` what a verification looks at and can find. All of these are pure: no network, no files,
no settings. `bundle`, `verify`, `cli` and `witness` are what an auditor runs.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Agent", "Caller", "Decision", "Denied", "Dpop", "Misconfigured", "Muniment", "MunimentError", "Refused",
    "Throttled", "Unavailable", "current_caller", "touched",
]  # fmt: skip

if TYPE_CHECKING:
    from muniment.calls import Agent, Caller, Decision, Dpop, current_caller
    from muniment.errors import Denied, Misconfigured, MunimentError, Refused, Throttled, Unavailable
    from muniment.guard import Muniment
    from muniment.tools import touched

_PLACES = {
    "guard": ("Muniment",),
    "calls": ("Agent", "Caller", "Decision", "Dpop", "current_caller"),
    "errors": ("Denied", "Misconfigured", "MunimentError", "Refused", "Throttled", "Unavailable"),
    "tools": ("touched",),
}


def __getattr__(name: str) -> Any:
    """What backends use, found when it is asked for: an auditor's verifier, and the platform, need no HTTP client."""
    from importlib import import_module

    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"muniment.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
