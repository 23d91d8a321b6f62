"""A real Celery worker whose clock stands where a file says, and whose disk is slow, so that what happens to it happens
in the midst of its work: `python -m tests.audit.moved_worker FILE ARGUMENTS...`, where the arguments are celery's."""

import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ["DJANGO_SETTINGS_MODULE"] = "governance.settings"
CLOCK = Path(sys.argv[1])
HELD = CLOCK.with_suffix(".held")  # while it is there, whoever has written half of a run does not go on
PAUSE = 0.03  # seconds for a page of 10 records


def main() -> None:
    """Move the clock, slow the reading down, be a worker."""
    from django.utils import timezone

    timezone.now = lambda: datetime.fromisoformat(CLOCK.read_text())

    from governance.celery import app

    app.loader.import_default_modules()
    from audit import search_pages
    from audit.exports import making
    from audit.models import ExportRun

    read = search_pages._read
    half = ExportRun.objects.filter(state="running", offset__gt=0, records__gt=0)

    def slowly(*given: Any) -> Any:
        time.sleep(PAUSE)
        while HELD.exists() and half.all().exists():
            time.sleep(PAUSE)
        return read(*given)

    search_pages.PAGE, making.SAVED_RECORDS, search_pages._read = 10, 20, slowly
    app.worker_main(sys.argv[2:])


if __name__ == "__main__":
    main()
