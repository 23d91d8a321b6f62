"""Finding one record by its id, whatever id is asked for."""

from uuid import UUID

import pytest

from audit import search


@pytest.mark.parametrize(
    "record",
    [
        "00000000-0000-0000-0000-000000000000",  # 1970, less a millisecond
        "00000000-0000-7000-8000-000000000000",
        "e677d21f-dbfe-7000-8000-000000000000",  # the last whose window ends in the year 9999
        "e677d21f-dbff-7000-8000-000000000000",  # of the year 9999, its window ends after it
        "e677d21f-dc00-7000-8000-000000000000",  # the year 10000
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ],
)
def test_an_id_of_an_extreme_time_is_no_record(db: None, record: str) -> None:
    assert search.by_id(UUID(record)) is None
