"""Asks the store from outside of a Corral."""

import sqlalchemy as sa

from corral.config import StoreSettings
from corral.core.errors import OperateError, StoreUnavailable
from corral.core.usage_report import Question, UsageSum
from corral.store.database import FAILURES, open_engine
from corral.store.usage import usage_of
from corral.store.usage_tables import usage_hour


async def look(settings: StoreSettings, question: Question) -> list[UsageSum]:
    """Past usage; raises OperateError that says what to do."""
    engine = open_engine(settings)
    try:
        async with engine.connect() as connection:
            known = await connection.run_sync(lambda each: sa.inspect(each).has_table(usage_hour.name))
        return await usage_of(engine, question) if known else []
    except (StoreUnavailable, *FAILURES) as error:
        where = "the PostgreSQL of CORRAL_STORE_URL" if settings.url is not None else settings.file
        why = str(error.__cause__ if isinstance(error, StoreUnavailable) else error).splitlines()[0]
        raise OperateError(f"{where} cannot be read ({why}); is it there, and is it Corral's?") from error
    finally:
        await engine.dispose()
