"""Days and months of UTC."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.calendar import day_of, month_of

moments = st.datetimes(datetime(1970, 1, 1), datetime(2999, 12, 31)).map(lambda when: when.replace(tzinfo=UTC))


@given(moments)
def test_a_period_ends_when_the_next_begins(when: datetime) -> None:
    now = when.timestamp()
    for period_of in (day_of, month_of):
        period = period_of(now)
        assert period.ends_unix_s > now
        assert period_of(period.ends_unix_s).number == period.number + 1
        assert period_of(period.ends_unix_s - 1).number == period.number


@pytest.mark.parametrize(
    ("when", "ends"),
    [
        (datetime(2024, 2, 29, 23, 59, 59), datetime(2024, 3, 1)),
        (datetime(2026, 12, 31, 12), datetime(2027, 1, 1)),
        (datetime(2026, 1, 1), datetime(2026, 2, 1)),
    ],
)
def test_months_end_on_their_first(when: datetime, ends: datetime) -> None:
    assert month_of(when.replace(tzinfo=UTC).timestamp()).ends_unix_s == ends.replace(tzinfo=UTC).timestamp()
