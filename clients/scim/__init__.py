"""SCIM 2.0 (RFC 7643, RFC 7644): identity providers that manage the users of an issuer here, so that a person who is
deactivated there is refused at the next call.

`tokens` knows by which token a connection calls, `resources` what a user is and how one is read, written and patched
(pure), `queries` which users a filter asks for, `store` keeps them and ends and gives back access."""
