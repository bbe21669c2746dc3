"""What a llama-server says of itself, and what is made of those that say less."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.errors import ConnectFailed, UpstreamError, UpstreamLoading
from corral.upstream.probe import Facts, Prober, authorization, read_facts
from support.exchanges import opened
from support.loops import on_both_loops
from support.told_llama import PROPS, slot, told_llama

LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
NOT_FOUND = {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}


@on_both_loops
async def test_a_ready_server_tells_its_facts() -> None:
    async with opened() as client, told_llama() as llama:
        facts = await Prober(client).facts(llama.address, "secret")
    assert facts == Facts(slots=2, context=2048, tools=False)
    assert llama.asked == [("/health", "secret"), ("/props", "secret")]


@on_both_loops
async def test_a_server_that_loads_is_loading() -> None:
    async with opened() as client, told_llama() as llama:
        llama.health = (503, LOADING)
        with pytest.raises(UpstreamLoading):
            await Prober(client).facts(llama.address, None)
        llama.health, llama.props = (200, {}), (503, LOADING)
        with pytest.raises(UpstreamLoading):
            await Prober(client).facts(llama.address, None)


@pytest.mark.parametrize("status", [500, 502, 504])
@on_both_loops
async def test_a_server_that_another_one_cannot_reach_is_not_ready(status: int) -> None:
    async with opened() as client, told_llama() as llama:
        llama.health = llama.props = (status, b"<html>bad gateway</html>")
        with pytest.raises(UpstreamError, match=f"status {status}"):
            await Prober(client).facts(llama.address, None)
        llama.health = (200, {})
        with pytest.raises(UpstreamError, match=f"status {status}"):
            await Prober(client).facts(llama.address, None)


@pytest.mark.parametrize("status", [401, 403])
@on_both_loops
async def test_a_server_that_refuses_our_key_says_what_to_set(status: int) -> None:
    async with opened() as client, told_llama() as llama:
        llama.props = (status, {})
        with pytest.raises(UpstreamError, match="LLAMA_API_KEY") as caught:
            await Prober(client).facts(llama.address, "secret")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("props", [(404, NOT_FOUND), (501, {}), (200, b"<html>"), (200, []), (200, {})])
@on_both_loops
async def test_a_server_that_tells_nothing_is_trusted_with_one_slot_and_not_asked_for_its_slots(
    props: tuple[int, object],
) -> None:
    async with opened() as client, told_llama() as llama:
        llama.health, llama.props = (404, NOT_FOUND), props
        assert await Prober(client).facts(llama.address, None) == Facts(slots=1, shows_slots=False)


@on_both_loops
async def test_a_server_that_is_not_there_cannot_be_asked() -> None:
    async with opened() as client:
        async with told_llama() as llama:
            pass
        with pytest.raises(ConnectFailed):
            await Prober(client).facts(llama.address, None)


@on_both_loops
async def test_the_tasks_that_are_worked_on_are_those_of_busy_slots() -> None:
    async with opened() as client, told_llama() as llama:
        llama.show(slot(0, task=17), slot(1), slot(2, task=0))
        assert await Prober(client).processing(llama.address, "secret") == {(0, 17), (2, 0)}
        assert llama.asked == [("/slots", "secret")]


@pytest.mark.parametrize("slots", [(501, {}), (200, {}), (200, b"x"), (404, [])])
@on_both_loops
async def test_a_server_that_does_not_show_its_slots_says_so(slots: tuple[int, object]) -> None:
    async with opened() as client, told_llama() as llama:
        llama.slots = slots
        with pytest.raises(UpstreamError, match="does not show its slots"):
            await Prober(client).processing(llama.address, None)


@on_both_loops
async def test_slots_of_another_shape_break_nothing() -> None:
    async with opened() as client, told_llama() as llama:
        odd = {"id": [1], "id_task": {}, "is_processing": True}
        llama.slots = (200, [5, {}, {"id": 3, "id_task": 4, "is_processing": True}, {"is_processing": False}, odd])
        assert await Prober(client).processing(llama.address, None) == {(3, 4), (-1, -1)}


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(list(PROPS)), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(PROPS)), json_values) | json_values)
def test_whatever_props_say_there_is_a_slot_and_a_sound_context(props: Any) -> None:
    facts = read_facts(props)
    assert facts.slots >= 1
    assert facts.context is None or facts.context > 0


def test_a_key_is_sent_as_llama_server_wants_it() -> None:
    assert authorization("abc") == [(b"authorization", b"Bearer abc")]
    assert authorization(None) == []
