"""What was used: everybody's for operators, its own for a client. Not served where there is no store."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from corral.core.errors import InvalidRequest
from corral.core.usage_report import By, Every, Question, UsageSum, moment, told
from corral.openai.complaints import INVALID_VALUE
from corral.openai.replies import ErrorReply
from corral.web.roles import principal_of
from corral.web.usage_shapes import UsageLine, UsageReply

Look = Callable[[Question], Awaitable[list[UsageSum]]]

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "A time that is none.",
        401: "No key, or one that is not known here.",
        403: "Not a key for this.",
        503: "The store does not answer.",
    }.items()
}
# An answer of more periods would take longer than anybody reads.
MOST_HOURS = 24 * 93

ByQuery = Annotated[By | None, Query(description="Tell sums apart by this.")]
EveryQuery = Annotated[Every | None, Query(description="A sum for each hour, day or month of UTC.")]
Since = Annotated[str, Query(description="`12h`, `7d` or `2w` ago, or a date of UTC: `2026-11-25`, `2026-11`.")]
Until = Annotated[str | None, Query(description="As `since`; now if it is missing.")]


def usage_router(look: Look, currency: str | None) -> APIRouter:
    """The routes of past usage; ``look`` asks the store."""
    router = APIRouter(tags=["usage"], responses=REFUSALS)

    async def reply(question: Question) -> UsageReply:
        sums = await look(question)
        return UsageReply(
            since=question.since,
            until=question.until,
            by=question.by,
            every=question.every,
            currency=currency,
            data=[UsageLine(**told(each, question)) for each in sums],
        )

    @router.get("/v1/usage", summary="What the key that asks has used")
    async def own_usage(
        request: Request,
        by: Annotated[By, Query(description="Tell sums apart by this.")] = By.MODEL,
        every: EveryQuery = None,
        since: Since = "30d",
        until: Until = None,
        model: str | None = None,
    ) -> UsageReply:
        asker = principal_of(request)
        # As its limits count: by one key of the store, or by all keys that a client has in the environment.
        client = None if asker.key_id else asker.client
        return await reply(replace(_question(by, every, since, until), client=client, key_id=asker.key_id, model=model))

    @router.get("/admin/usage", summary="What was used", tags=["operator"])
    async def all_usage(
        by: ByQuery = By.CLIENT,
        every: EveryQuery = None,
        since: Since = "30d",
        until: Until = None,
        client: str | None = None,
        key: str | None = None,
        model: str | None = None,
    ) -> UsageReply:
        return await reply(replace(_question(by, every, since, until), client=client, key_id=key, model=model))

    return router


def _question(by: By | None, every: Every | None, since: str, until: str | None) -> Question:
    now = time.time()
    try:
        question = Question(moment(since, now), now if until is None else moment(until, now), by, every)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(str(error), param="since", code=INVALID_VALUE) from error
    if every is Every.HOUR and question.until - question.since > MOST_HOURS * 3600:
        raise InvalidRequest("hours can be told of 93 days at once", param="every", code=INVALID_VALUE)
    return question
