"""The conformance suite of SCIM (scim2-tester) against the platform behind a real HTTP server."""

from collections import Counter
from collections.abc import Callable

import pytest
from httpx2 import Client as HttpClient
from scim2_client.engines.httpx2 import SyncSCIMClient
from scim2_tester import Status, check_server

from clients.models import ScimUser
from tests import scim, world
from tests.served import platform


# Where externalId is required it is neither added nor removed.
@pytest.mark.parametrize(
    ("attribute", "checks"), [("userName", 51), pytest.param("externalId", 49, marks=pytest.mark.soak)]
)
def test_every_check_passes(
    attribute: str, checks: int, db: None, record_property: Callable[[str, object], None]
) -> None:
    world.build()
    provider = scim.connect(attribute=attribute)
    with platform() as url:
        headers = {"Authorization": f"Bearer {provider.token}"}
        with HttpClient(base_url=f"{url}/scim/v2/okta", headers=headers, timeout=30) as http:
            results = check_server(SyncSCIMClient(http))
    summary = Counter(result.status for result in results)
    record_property("scim2-tester", {status.name: count for status, count in summary.items()})
    assert set(summary) == {Status.SUCCESS}, [(r.title, r.reason) for r in results if r.status != Status.SUCCESS]
    assert summary[Status.SUCCESS] >= checks
    assert not ScimUser.objects.exists()  # it has deleted what it made
