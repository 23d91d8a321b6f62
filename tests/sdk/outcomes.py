"""What backends reported of their calls, as it is on record."""

import json
import time

from audit.models import Record


def last_outcome(tool: str) -> str:
    """The status that was reported of the last call of a tool, when it is there."""
    call = str(Record.objects.filter(type="decision", tool=tool).latest("index").id)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        rows = [json.loads(bytes(row.statement)) for row in Record.objects.filter(type="outcome")]
        if found := [row["outcome"]["status"] for row in rows if row["parent"] == call]:
            [status] = found
            return str(status)
        time.sleep(0.02)
    raise AssertionError(f"nothing was reported of the last call of {tool}")
