"""The period that a job asks for, as days in UTC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from pipeline.errors import JobError

_DURATION = re.compile(r"P([1-9][0-9]{0,3})([DMY])")
_FORMS = (
    "write FIRST/LAST as 2023-08-10/2023-08-20, one day as 2023-08-10, P1M for the last complete month or P30D for the 30 days that end yesterday"
)


@dataclass(frozen=True)
class Period:
    """Whole days in UTC, the last one included."""

    start: date
    end: date

    @property
    def first_instant(self) -> datetime:
        """Midnight at which the first day begins, aware, UTC."""
        return datetime.combine(self.start, time.min, UTC)

    @property
    def last_instant(self) -> datetime:
        """Last microsecond of the last day, aware, UTC."""
        return datetime.combine(self.end, time.max, UTC)

    @property
    def slug(self) -> str:
        """Both days as paths and names carry them: ``2023-08-10_2023-08-20``."""
        return f"{self.start.isoformat()}_{self.end.isoformat()}"

    def __str__(self) -> str:
        """Return both days as STAC and job files write them: ``2023-08-10/2023-08-20``."""
        return f"{self.start.isoformat()}/{self.end.isoformat()}"


def resolve_period(text: str, today: date) -> Period:
    """Return the days that `text` means on the day `today` (UTC).

    Parameters
    ----------
    text
        ``A/B``, one day ``A``, ``P<n>D`` (n days that end yesterday), ``P<n>M`` or ``P<n>Y`` (last n complete calendar months or years).
    today
        The day on which the job runs; only durations depend on it.

    Raises
    ------
    JobError
        `text` is none of these, a day does not exist, or the days are reversed.
    """
    duration = _DURATION.fullmatch(text.strip())
    if duration:
        return _before(int(duration[1]), duration[2], today, text)
    days = [_day(part.strip(), text) for part in text.split("/")]
    if len(days) > 2:
        raise JobError(f"{text!r} is not understood; {_FORMS}")
    if days[-1] < days[0]:
        raise JobError(f"{text!r} ends before it begins; write the earlier day first")
    return Period(days[0], days[-1])


def _day(part: str, text: str) -> date:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", part):
        raise JobError(f"{text!r} is not understood; {_FORMS}")
    try:
        return date.fromisoformat(part)
    except ValueError:
        raise JobError(f"{text!r}: there is no day {part}") from None


def _before(count: int, unit: str, today: date, text: str) -> Period:
    try:
        if unit == "D":
            return Period(today - timedelta(days=count), today - timedelta(days=1))
        months = count * (12 if unit == "Y" else 1)
        after = today.replace(month=1, day=1) if unit == "Y" else today.replace(day=1)
        index = after.year * 12 + after.month - 1 - months
        return Period(date(index // 12, index % 12 + 1, 1), after - timedelta(days=1))
    except (ValueError, OverflowError):
        raise JobError(f"{text!r} reaches back beyond the calendar") from None
