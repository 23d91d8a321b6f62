"""Signals that end access before a token does: security events of a transmitter (OpenID Shared Signals 1.0), pushed or
polled, and back-channel logout."""
