import time
from datetime import datetime, timedelta

import pytest

from pipeline.deadlines import deadline_at, parse_deadline


@pytest.fixture(autouse=True)
def berlin(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "hours"), [("5h", 5), ("90m", 1.5), ("45s", 45 / 3600), ("1h30m", 1.5), ("1h1m36s", 1 + 96 / 3600)]
)
def test_a_duration_counts_from_the_start(text, hours):
    started = datetime.fromisoformat("2026-11-24T23:00:00+00:00")
    assert deadline_at(text, started) - started == timedelta(hours=hours)


@pytest.mark.parametrize(
    ("started", "text", "moment"),
    [
        ("2026-11-24T02:00:00+01:00", "06:00", "2026-11-24T06:00:00+01:00"),
        ("2026-11-24T05:59:59+01:00", "6:00", "2026-11-24T06:00:00+01:00"),
        ("2026-11-24T06:00:00+01:00", "06:00", "2026-11-25T06:00:00+01:00"),
        ("2026-11-24T22:30:00+00:00", "00:00", "2026-11-25T00:00:00+01:00"),
        ("2026-12-31T22:10:00+00:00", "00:05", "2027-01-01T00:05:00+01:00"),
        # Summer time begins: the night is an hour shorter, and has no half past two.
        ("2026-03-28T23:00:00+00:00", "06:00", "2026-03-29T06:00:00+02:00"),
        ("2026-03-29T00:30:00+00:00", "02:30", "2026-03-29T03:30:00+02:00"),
        # It ends: the night has half past two twice.
        ("2026-10-25T00:10:00+00:00", "02:30", "2026-10-25T02:30:00+02:00"),
        ("2026-10-25T01:10:00+00:00", "02:30", "2026-10-25T02:30:00+01:00"),
        ("2026-10-25T00:10:00+00:00", "06:00", "2026-10-25T06:00:00+01:00"),
    ],
)
def test_a_time_of_day_is_the_next_one_here(started, text, moment):
    assert deadline_at(text, datetime.fromisoformat(started)) == datetime.fromisoformat(moment)


@pytest.mark.parametrize("text", ["", "0s", "0h0m", "5", "h", "24:00", "06:60", "6", "-5h", "5 h", "30m1h", "tomorrow"])
def test_anything_else_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="such as 5h"):
        parse_deadline(text)
