"""Windows of the week in local time, such as "Mon-Fri 08:00-18:00", and when one ends. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY_MINUTES = 24 * 60
_WINDOW = re.compile(
    r"(?:(?P<first>[A-Z][a-z]{2})(?:-(?P<last>[A-Z][a-z]{2}))? )?"
    r"(?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)"
)


@dataclass(frozen=True)
class Window:
    """Minutes from `begin` to `end` of each day that it begins on (0 is Monday); `end` <= `begin`: of the
    next day."""

    days: frozenset[int]
    begin: int
    end: int

    def ends(self, now: datetime) -> datetime | None:
        """When it is over, where it is open now."""
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        over_night = _DAY_MINUTES if self.end <= self.begin else 0
        # Today's, and yesterday's that lasts into today.
        for day in (midnight, midnight - timedelta(days=1)):
            begins = day + timedelta(minutes=self.begin)
            ends = day + timedelta(minutes=self.end + over_night)
            if day.weekday() in self.days and begins <= now < ends:
                return ends
        return None


def parse_window(text: str) -> Window:
    """Raises ValueError, which says the rule."""
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise ValueError(_rule(text))
    begin, end = _minutes(found["begin"], text), _minutes(found["end"], text)
    if begin in (_DAY_MINUTES, end):
        raise ValueError(_rule(text))
    if found["first"] is None:
        return Window(frozenset(range(7)), begin, end)
    names = found["first"], found["last"] or found["first"]
    if not set(names) <= set(DAYS):
        raise ValueError(_rule(text))
    first, last = (DAYS.index(name) for name in names)
    return Window(frozenset((first + n) % 7 for n in range((last - first) % 7 + 1)), begin, end)


def quiet_until(windows: Sequence[Window], now: datetime) -> datetime | None:
    """When all windows that are open now, or open before these end, are over; None where none is open.

    A week at most is looked ahead: windows may leave nothing open.
    """
    until = now
    while until - now < timedelta(7):
        ends = [end for window in windows if (end := window.ends(until)) is not None]
        if not ends:
            break
        until = max(ends)
    return until if until > now else None


def _minutes(text: str, whole: str) -> int:
    hours, minutes = (int(part) for part in text.split(":"))
    if minutes > 59 or hours * 60 + minutes > _DAY_MINUTES:
        raise ValueError(_rule(whole))
    return hours * 60 + minutes


def _rule(text: str) -> str:
    return f'must be like "22:00-06:00" or "Mon-Fri 08:00-18:00", got {text!r}'
