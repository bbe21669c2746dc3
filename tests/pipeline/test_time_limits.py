"""Whose time limits hold."""

from corral.config import ModelSettings, RouteTimeouts, TimeoutSettings
from corral.core.call import Endpoint
from corral.pipeline.time_limits import TimeLimits

TIMEOUTS = TimeoutSettings(chat=RouteTimeouts(first_byte_s=1.0, total_s=2.0))


def test_a_model_that_says_nothing_has_those_of_the_route() -> None:
    limits = TimeLimits(TIMEOUTS, [ModelSettings(name="m", upstreams=("http://127.0.0.1:1",))])
    assert limits.of("m", Endpoint.CHAT) == TIMEOUTS.chat
    assert limits.of("m", Endpoint.EMBEDDINGS) == TIMEOUTS.embeddings


def test_what_a_model_says_holds_for_all_its_routes_and_for_no_other_model() -> None:
    slow = ModelSettings(name="slow", upstreams=("http://127.0.0.1:1",), first_byte_s=60.0)
    limits = TimeLimits(TIMEOUTS, [slow])
    assert limits.of("slow", Endpoint.CHAT) == RouteTimeouts(first_byte_s=60.0, total_s=2.0)
    assert limits.of("slow", Endpoint.EMBEDDINGS).first_byte_s == 60.0
    assert limits.of("quick", Endpoint.CHAT) == TIMEOUTS.chat
