"""What must hold for every model and module: the direction of foreign keys, triggers, docstrings, sizes."""

import ast
import importlib
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib import admin
from django.db import connection, models

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["governance", "clients", "tools", "audit"]  # imports and foreign keys go to the right
OURS = [model for model in apps.get_models() if model._meta.app_label in ORDER]
POLICY = importlib.import_module("governance.migrations.0008_identity").TABLES
# Tables of clients and tools from which nothing is decided, each for its reason.
NOT_POLICY = {
    "clients_accessrequest": "a wish; the grant that it becomes is policy",
    "clients_accessrequest_scopes": "of a wish",
    "clients_review": "what people found of grants; revoking one is policy",
    "clients_reviewitem": "of a review",
    "clients_clientmetadata": "what strangers publish about a client",
    "clients_signalreceipt": "which events were taken",
    "clients_scimuser": "what an identity provider says of a user; that it ends access is the user's state",
    "tools_approveddefinition": "what a tool was when it was approved, to be compared with",
}
# Not in the admin, each for its reason.
NOT_REGISTERED = {
    "Head": "one row that only the recorder moves; the home page shows it",
    "Batch": "shown with its records",
    "Record": "has pages of its own, which never count",
    "DataKey": "nobody has any business with a wrapped key",
    "OAuthClientId": "edited with its client",
    "AcceptedIssuer": "edited with its backend",
    "Log": "one, almost for ever; the log page names it, and its seams where there are more",
    "Tile": "hashes without end; proofs are made of them",
    "Anchoring": "one for each checkpoint and place; a record's page and the log page say what they mean",
    "AnchorState": "the log page shows each place with what to do",
    "PinnedScope": "edited with its scope",
    "BackendMark": "edited with its backend",
    "Route": "edited with its backend",
    "ApprovedDefinition": "shown beside the tool",
    "Rollup": "figures without end; the charts show them",
    "RollupState": "one row; the charts say how far they count",
    "SavedSearch": "kept and opened on the search page",
    "StaffIdentity": "shown with the member of staff",
    "ReviewItem": "decided on the page of its review",
    "Guard": "one row that is only locked",
    "Hold": "has pages of its own: two people release one",
    "RetentionRule": "on the retention page",
    "RetentionFloor": "on the retention page",
    "RetentionRun": "on the retention page",
    "RetentionStep": "part of a run, on the retention page",
    "Erasure": "has pages of its own",
    "Export": "has pages of its own",
    "ExportRun": "on the page of its export",
    "Destination": "the operator's; the form of an export offers them",
    "Stream": "the operator's; the streams page shows how each does",
    "DeadLetter": "on the streams page",
    "Notification": "has a page of its own, for each member of staff theirs",
    "NotificationDelivery": "shown with its notification",
    "ClaimMapping": "edited with its issuer",
    "Introspection": "edited with its issuer",
    "IssuerBinding": "edited with its issuer",
    "ClientMetadata": "shown with the client and in the inbox",
    "SignalReceipt": "which events were taken; the page of a stream counts them",
    "ScimUser": "another's view of a user; the user's page says what came of it",
    "SubjectTenant": "shown with the user",
    "StaffTenant": "edited with the member of staff",
    "NotificationChoice": "a member of staff's own, on the page of notifications",
    "SealerStatus": "one row that the sealer writes; the log page says it in words",
}
LONGEST_FUNCTION, LONGEST_FILE = 45, 450


def sources() -> list[Path]:
    folders = [*ORDER, "sdk/muniment", "bench", "examples"]
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [path for path in found if "migrations" not in path.parts]


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_foreign_keys_follow_the_import_order_and_evidence_has_none(model: type[models.Model]) -> None:
    here = ORDER.index(model._meta.app_label)
    for field in model._meta.get_fields():
        if field.is_relation and not field.auto_created and field.related_model is not None:
            assert model._meta.app_label != "audit", f"{model.__name__}.{field.name}"
            if field.related_model._meta.app_label == "auth":  # staff: only the top knows them; others copy a name
                assert model._meta.app_label == "governance", f"{model.__name__}.{field.name}"
                continue
            assert ORDER.index(field.related_model._meta.app_label) >= here, f"{model.__name__}.{field.name}"


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_every_model_says_what_it_is(model: type[models.Model]) -> None:
    assert model.__doc__
    assert not model.__doc__.startswith(f"{model.__name__}("), "Django's own, not ours"
    assert model.__str__ is not models.Model.__str__


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_every_model_is_in_the_admin_or_has_a_reason_not_to_be(model: type[models.Model]) -> None:
    assert admin.site.is_registered(model) != (model.__name__ in NOT_REGISTERED)


def test_every_table_of_clients_and_tools_is_policy_and_watched(migrated: None) -> None:
    tables = {
        model._meta.db_table
        for model in apps.get_models(include_auto_created=True)
        if model._meta.app_label in ("clients", "tools")
    }
    assert set(NOT_POLICY) < tables
    tables -= set(NOT_POLICY)
    assert set(POLICY) == tables
    with connection.cursor() as cursor:
        cursor.execute("SELECT tgrelid::regclass::text, tgargs FROM pg_trigger WHERE tgname = 'muniment_policy_change'")
        watched = {table: bytes(arguments).split(b"\0") for table, arguments in cursor.fetchall()}
    assert set(watched) == tables
    for table, (plain, digests, *_) in watched.items():
        assert plain.decode().split(",") == list(POLICY[table].plain)
        assert [name for name in digests.decode().split(",") if name] == list(POLICY[table].digests)


def test_no_secret_is_among_the_columns_that_the_log_carries() -> None:
    for table, columns in POLICY.items():
        for name in (*columns.plain, *columns.digests):
            assert not {"digest", "secret", "wrapped", "identity_key", "sub", "email", "last_used"} & {name}, table


def test_a_function_fits_a_screen_and_a_file_does_one_thing() -> None:
    long = []
    for path in sources():
        text = path.read_text()
        if text.count("\n") > LONGEST_FILE:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION:
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert not long


def test_public_code_has_docstrings() -> None:
    missing = []
    for path in sources():
        tree = ast.parse(path.read_text())
        if path.name != "__init__.py" and not ast.get_docstring(tree):
            missing.append(str(path.relative_to(ROOT)))
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not missing
