"""What the store knows of past usage."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from corral.core.principal import account_of
from corral.core.usage_report import Every, HourSum, Question, Report, UsageSum, period_start
from corral.store.database import reading
from corral.store.usage_tables import usage_hour

# Hours that are added up before other tasks have their turn.
ROWS_AT_ONCE = 500


async def usage_of(engine: AsyncEngine, question: Question) -> list[UsageSum]:
    """The sums that answer a question; hours count whole that begin in its time."""
    asked = sa.select(usage_hour).where(*_conditions(question))
    report = Report(question)
    async with reading(engine) as connection:
        hours = await connection.stream(asked)
        async for part in hours.partitions(ROWS_AT_ONCE):
            report.add(HourSum(*row) for row in part)
    return report.sums()


async def spent(engine: AsyncEngine, now: float) -> dict[str, tuple[int, int]]:
    """Tokens of each account today and this month, in UTC: what budgets of days and months begin with."""
    day, month = period_start(now, Every.DAY), period_start(now, Every.MONTH)
    tokens = usage_hour.c.prompt_tokens + usage_hour.c.completion_tokens
    today = sa.func.sum(sa.case((usage_hour.c.hour >= day, tokens), else_=0))
    whose = (usage_hour.c.client, usage_hour.c.key_id)
    asked = sa.select(*whose, today, sa.func.sum(tokens)).where(usage_hour.c.hour >= month).group_by(*whose)
    totals: dict[str, tuple[int, int]] = {}
    async with reading(engine) as connection:
        for client, key_id, of_day, of_month in await connection.execute(asked):
            account = account_of(client, key_id)
            before = totals.get(account, (0, 0))
            totals[account] = (before[0] + int(of_day), before[1] + int(of_month))
    return totals


def _conditions(question: Question) -> list[sa.ColumnElement[bool]]:
    columns = usage_hour.c
    wanted = {columns.client: question.client, columns.key_id: question.key_id, columns.model: question.model}
    return [
        columns.hour >= period_start(question.since, Every.HOUR),
        columns.hour < question.until,
        *(column == value for column, value in wanted.items() if value is not None),
    ]
