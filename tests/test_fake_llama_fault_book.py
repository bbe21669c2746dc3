"""Whom a fault strikes, how often, and how one is written."""

from collections.abc import Iterator

import pytest

from fake.faults import from_mapping, parse
from support.fake import FakeLlama
from support.raw_client import RawClient, ask

CHAT = "/v1/chat/completions"
WHOLE = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


@pytest.fixture(scope="module")
def running() -> Iterator[FakeLlama]:
    with FakeLlama() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeLlama) -> FakeLlama:
    running.reset()
    return running


def test_a_fault_counts_down(fake: FakeLlama) -> None:
    fake.fault("status", status=502, skip=1, times=2)
    assert [ask(fake.port, CHAT, WHOLE).status for _ in range(4)] == [200, 502, 502, 200]
    assert fake.state()["faults"] == []


@pytest.mark.parametrize(("path", "struck"), [("", [False, True]), ("/health", [True, False]), ("*", [True, True])])
def test_a_fault_strikes_inference_or_the_path_it_names(fake: FakeLlama, path: str, struck: list[bool]) -> None:
    fake.fault("status", status=500, path=path)
    assert [ask(fake.port, "/health").status == 500, ask(fake.port, CHAT, WHOLE).status == 500] == struck
    assert fake.state()["requests"] == 2


def test_a_fault_is_written_as_text_or_json() -> None:
    assert parse("stall,after=3,seconds=0.5") == from_mapping({"kind": "stall", "after": 3, "seconds": 0.5})


@pytest.mark.parametrize(
    ("text", "reason"), [("nonsense", "no fault"), ("rst,often=3", "no key"), ("rst,after=x", "x")]
)
def test_a_fault_that_is_none_is_refused(fake: FakeLlama, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)
    kind, _, key = text.partition(",")
    with pytest.raises(AssertionError, match=reason):
        fake.fault(kind, **dict([key.split("=")] if key else []))


def test_a_reset_ends_faults_and_forgets_requests(fake: FakeLlama) -> None:
    fake.fault("refuse")
    fake.set(token_s=1.0)
    fake.reset()
    state = fake.state()
    assert (state["faults"], state["requests"], state["door"]) == ([], 0, "open")
    assert state["settings"]["token_s"] == 0.0


def test_a_reset_breaks_off_what_runs(fake: FakeLlama) -> None:
    fake.set(token_s=3600)
    with RawClient(fake.port) as client:
        client.send("POST", CHAT, WHOLE)
        fake.until(lambda state: state["processing"] == 1)
        fake.reset()
        assert client.receive().end == "rst"
    assert fake.state()["processing"] == 0


def test_a_setting_that_is_none_is_refused(fake: FakeLlama) -> None:
    with pytest.raises(AssertionError, match="no setting"):
        fake.set(pace=1)
