"""A wrong period maps the wrong month, every month, while nobody watches."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.period import Period, resolve_period

TODAY = date(2024, 3, 31)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2023-08-10/2023-08-20", date(2023, 8, 10), date(2023, 8, 20)),
        (" 2023-08-10 / 2023-08-20 ", date(2023, 8, 10), date(2023, 8, 20)),
        ("2023-08-10", date(2023, 8, 10), date(2023, 8, 10)),
        ("P1M", date(2024, 2, 1), date(2024, 2, 29)),
        ("P3M", date(2023, 12, 1), date(2024, 2, 29)),
        ("P1Y", date(2023, 1, 1), date(2023, 12, 31)),
        ("P30D", date(2024, 3, 1), date(2024, 3, 30)),
        ("P1D", date(2024, 3, 30), date(2024, 3, 30)),
    ],
)
def test_a_period_means_the_days_that_the_job_file_documents(text: str, start: date, end: date) -> None:
    assert resolve_period(text, TODAY) == Period(start, end)


def test_the_last_day_is_included_to_its_last_microsecond() -> None:
    period = resolve_period("2023-08-10/2023-08-20", TODAY)
    assert period.first_instant == datetime(2023, 8, 10, tzinfo=UTC)
    assert period.last_instant == datetime(2023, 8, 21, tzinfo=UTC) - timedelta(microseconds=1)


def test_a_period_has_one_spelling_for_paths_and_one_for_people() -> None:
    period = resolve_period("2023-08-10/2023-08-20", TODAY)
    assert (period.slug, str(period)) == ("2023-08-10_2023-08-20", "2023-08-10/2023-08-20")


@given(st.dates(date(1990, 1, 1), date(2100, 1, 1)), st.integers(1, 24))
def test_months_are_complete_adjoin_and_lie_in_the_past(today: date, count: int) -> None:
    period = resolve_period(f"P{count}M", today)
    assert period.start.day == 1
    assert (period.end + timedelta(days=1)).day == 1
    assert period.end < today <= period.end + timedelta(days=31)
    assert (period.end.year - period.start.year) * 12 + period.end.month - period.start.month == count - 1


@given(st.dates(date(1990, 1, 1), date(2100, 1, 1)), st.integers(1, 400))
def test_days_end_yesterday_and_are_as_many_as_asked(today: date, count: int) -> None:
    period = resolve_period(f"P{count}D", today)
    assert period.end == today - timedelta(days=1)
    assert (period.end - period.start).days + 1 == count


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2023-08-20/2023-08-10", "ends before it begins"),
        ("2023-02-30", "there is no day 2023-02-30"),
        ("2023-13-01/2023-13-02", "there is no day"),
        ("2023-08-10/2023-08-20/2023-08-30", "not understood"),
        ("August", "write FIRST/LAST"),
        ("P1W", "not understood"),
        ("P0D", "not understood"),
        ("2023-08-10T00:00:00Z", "not understood"),
        ("2023-08-10/..", "not understood"),
        ("P9999Y", "beyond the calendar"),
        ("", "not understood"),
    ],
)
def test_a_period_that_is_none_is_refused_with_what_to_write(text: str, words: str) -> None:
    with pytest.raises(JobError, match=words):
        resolve_period(text, TODAY)
