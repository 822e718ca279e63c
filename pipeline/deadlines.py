"""When a run takes no new shard any more: a time after its start (`5h`, `1h30m`, `45s`) or the next such clock time (`06:00`)."""

import re
from datetime import datetime, time, timedelta

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


def parse_deadline(text: str) -> timedelta | time:
    """Return the duration or the clock time that `text` says; ValueError when it says neither."""
    if clock := _CLOCK.fullmatch(text):
        return time(int(clock[1]), int(clock[2]))
    if duration := _DURATION.fullmatch(text):
        hours, minutes, seconds = (int(part or 0) for part in duration.groups())
        if any((hours, minutes, seconds)):
            return timedelta(hours=hours, minutes=minutes, seconds=seconds)
    raise ValueError("expected a duration above zero, such as 5h, 1h30m or 45s, or a time of day, such as 06:00")


def deadline_at(text: str, started: datetime) -> datetime:
    """Return the moment that a deadline means for a run that started at `started`.

    Parameters
    ----------
    started : datetime
        With a time zone. A time of day is meant in this machine's zone, and its moment is always later than `started`.
    """
    parsed = parse_deadline(text)
    if isinstance(parsed, timedelta):
        return started + parsed
    for days in (0, 1):
        day = (started.astimezone() + timedelta(days=days)).date()
        for fold in (0, 1):  # in the night that has an hour twice, the second one may be the next
            moment = datetime.combine(day, parsed.replace(fold=fold)).astimezone()
            if moment > started:
                return moment
    raise AssertionError("tomorrow's time of day is later than now")
