"""What is known of well-known authorization servers, to begin an issuer with (pure). Staff see it in the form, and may
change all of it; what a preset says is tried with claims as its provider documents them, in docs/integrations."""

from dataclasses import dataclass
from typing import Final

from clients.jwks import STANDARD_CLAIMS, ClaimRules


@dataclass(frozen=True, slots=True)
class Preset:
    """One provider. `issuer_form` is what its issuers look like, with the parts that differ in angle brackets; `notes`
    are sentences; `recipe` is the page of docs/integrations about it."""

    slug: str
    name: str
    issuer_form: str
    notes: tuple[str, ...]
    algorithms: tuple[str, ...] = ("RS256",)
    tenant_claim: str | None = None
    roles_claim: str | None = None
    claims: ClaimRules = STANDARD_CLAIMS

    @property
    def recipe(self) -> str:
        """The path of its page in the repository."""
        return f"docs/integrations/{self.slug}.md"


_ALL: Final = (
    Preset(
        "auth0", "Auth0", "https://<tenant>.<region>.auth0.com/",
        (
            "The issuer ends with a slash, also under a domain of your own.",
            "Roles come only under a name that an Action of yours gives them, such as https://inner.example/roles: name"
            " it as the roles claim. An e-mail address likewise.",
            "Leave “Add Permissions in the Access Token” off: permissions lists all that the user has, whatever the"
            " client asked for, and is read as scopes.",
        ),
        tenant_claim="org_id",
    ),
    Preset(
        "okta", "Okta", "https://<org>.okta.com/oauth2/<authorization server id>",
        (
            "Of a custom authorization server: tokens of the bare domain are for Okta alone.",
            "Users are known by uid, which stays; sub is by default the login, which changes with a name. A token"
            " without a user has no uid and is refused.",
            "Groups come as groups once you add that claim to the access token.",
        ),
        roles_claim="groups", claims=ClaimRules(subject="uid"),
    ),
    Preset(
        "entra", "Microsoft Entra ID", "https://login.microsoftonline.com/<tenant id>/v2.0",
        (
            "One issuer is one tenant: common and organizations are none.",
            "Users are known by oid, which is the same in all applications of the tenant, and is what SCIM calls them;"
            " sub is another one for each application.",
            "App roles come as roles. A token that an application has for itself has roles and no scp.",
        ),
        tenant_claim="tid", roles_claim="roles", claims=ClaimRules(subject="oid"),
    ),
    Preset(
        "keycloak", "Keycloak", "https://<host>/realms/<realm>",
        (
            "For the roles of one client instead of the realm's, name resource_access.<client>.roles.",
            "On an address that is not public, list its network below, so that its keys may be fetched.",
        ),
        roles_claim="realm_access.roles",
    ),
    Preset(
        "cognito", "Amazon Cognito", "https://cognito-idp.<region>.amazonaws.com/<user pool id>",
        (
            "Access tokens have an aud only where the client asked for a resource, or where a trigger adds one: without"
            " it every call is refused with audience_mismatch.",
            "Scopes have the name of their resource server in front: inner/memory:read.",
            "Groups are the roles. An access token has no e-mail address.",
        ),
        roles_claim="cognito:groups",
    ),
    Preset(
        "firebase", "Firebase", "https://securetoken.google.com/<project id>",
        (
            "Firebase has ID tokens only, and all apps of a project get the same: aud is the project, and so is the"
            " client. Make the project id the audience of the backend.",
            "They have no scopes but those that you set as custom claims, in scope; without them every tool that needs"
            " one is refused with insufficient_scope.",
            "Roles are custom claims too: name yours as the roles claim.",
        ),
        tenant_claim="firebase.tenant", claims=ClaimRules(client_id=("aud",)),
    ),
    Preset(
        "workos", "WorkOS AuthKit", "https://<subdomain>.authkit.app",
        (
            "Of Connect, not the session tokens of https://api.workos.com.",
            "The organization is the tenant. There are no roles in these tokens.",
        ),
        tenant_claim="org_id",
    ),
)  # fmt: skip
PRESETS: Final = {preset.slug: preset for preset in _ALL}
