"""Days and months of UTC, numbered."""

from datetime import UTC, date, datetime
from typing import NamedTuple

DAY_S = 86_400
EPOCH = date(1970, 1, 1)


class Period(NamedTuple):
    """One of a row; the next begins when it ends."""

    number: int
    ends_unix_s: float


def day_of(unix_s: float) -> Period:
    """The day in which this is, numbered from 1970-01-01."""
    number = int(unix_s // DAY_S)
    return Period(number, float((number + 1) * DAY_S))


def month_of(unix_s: float) -> Period:
    """The month in which this is, numbered from the first of year 0."""
    when = datetime.fromtimestamp(unix_s, UTC)
    number = when.year * 12 + when.month - 1
    following = date((number + 1) // 12, (number + 1) % 12 + 1, 1)
    return Period(number, float((following - EPOCH).days * DAY_S))
