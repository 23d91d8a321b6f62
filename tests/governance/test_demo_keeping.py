"""What the demo has of keeping and handing over is made as staff would make it, and deletes nothing of its past."""

import pytest
from django_celery_beat.models import PeriodicTask

from audit.models import Export, ExportRun, Hold, Outbox, RetentionRule
from audit.retention import changes
from governance import demo, demo_keeping
from governance.demo_history import DAYS


def test_it_has_rules_a_floor_a_hold_and_an_export_that_runs_each_day(db: None) -> None:
    demo.make_staff()
    demo_keeping.make()
    assert RetentionRule.objects.count() == len(demo_keeping.RULES) == 2
    assert all(rule.days > 10 * DAYS for rule in RetentionRule.objects.all()), "nothing of the history may go"
    assert changes.modes() == {"soc-2": "warn"}
    assert Hold.objects.get().client == "inner-ios"
    export = Export.objects.get()
    assert export.schedule == "daily" and PeriodicTask.objects.filter(name=f"export {export.pk}", enabled=True).exists()
    assert ExportRun.objects.get().export == export.pk
    kinds = set(Outbox.objects.values_list("kind", flat=True))
    assert {"retention", "hold", "staff"} <= kinds, "each of it is told to the log"


@pytest.mark.parametrize("gone", [demo_keeping.PRIVACY, demo_keeping.AUDITOR])
def test_a_login_that_is_not_there_makes_nothing(db: None, gone: str) -> None:
    from django.contrib.auth import get_user_model

    demo.make_staff()
    get_user_model().objects.filter(username=gone).delete()
    demo_keeping.make()
    assert Export.objects.exists() is (gone != demo_keeping.AUDITOR)
    assert Hold.objects.exists() is (gone != demo_keeping.PRIVACY)
