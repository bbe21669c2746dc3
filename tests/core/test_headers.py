"""Request ids, keys and durations in headers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.core.headers import bearer, go_duration, request_id

HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize("candidate", [b"a", b"req_1", b"A.b:c-d_e", b"x" * 128, b"018f-7c"])
def test_a_sound_request_id_is_kept(candidate: bytes) -> None:
    assert request_id(candidate, lambda: HEX) == candidate.decode()


@pytest.mark.parametrize(
    "candidate",
    [
        None,
        b"",
        b"x" * 129,
        b"a b",
        b"a\n",
        b"a\r\nset-cookie: b",
        b'"a"',
        b"{}",
        b"\xc3\xa9",
        b"a\x00",
        b"a/b",
        b"<a>",
    ],
)
def test_an_unsound_request_id_is_replaced(candidate: bytes | None) -> None:
    assert request_id(candidate, lambda: HEX) == f"req_{HEX}"


@given(st.binary(max_size=200))
def test_every_request_id_is_safe_in_a_header_and_in_a_log_line(candidate: bytes) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._:\-]{1,128}", request_id(candidate, lambda: HEX))


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer key")],
        [(b"authorization", b"bearer key")],
        [(b"authorization", b"BEARER    key  ")],
        [(b"x-api-key", b"key")],
        [(b"x-api-key", b" key\t")],
        [(b"host", b"h"), (b"authorization", b"Bearer key"), (b"x-api-key", b"key")],
        # A reverse proxy's own scheme says nothing about our key.
        [(b"authorization", b"Basic YTpi"), (b"x-api-key", b"key")],
    ],
)
def test_a_key_is_found_in_either_header(headers: list[tuple[bytes, bytes]]) -> None:
    assert bearer(headers) == b"key"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Bearerkey")],
        [(b"authorization", b"key")],
        [(b"authorization", b"Basic key")],
        [(b"x-api-key", b" ")],
        [(b"authorization", b"Bearer key"), (b"authorization", b"Bearer key")],
        [(b"x-api-key", b"key"), (b"x-api-key", b"key")],
        [(b"x-api-key", b"key"), (b"x-api-key", b"other")],
        [(b"authorization", b"Bearer key"), (b"x-api-key", b"other")],
    ],
)
def test_no_key_and_several_keys_are_both_no_key(headers: list[tuple[bytes, bytes]]) -> None:
    assert bearer(headers) is None


@pytest.mark.parametrize("key", [b"' OR 1=1 --", b"\x00\x00", b"k" * 1_000_000, "clé".encode(), b"Bearer key"])
def test_a_key_is_taken_as_it_is(key: bytes) -> None:
    assert bearer([(b"authorization", b"Bearer " + key)]) == key


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (-1.0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (0.9999, "1s"),
        (1.0, "1s"),
        (1.1, "1.1s"),
        (1.05, "1.05s"),
        (59.9991, "1m0s"),
        (60.0, "1m0s"),
        (90.5, "1m30.5s"),
        (360.0, "6m0s"),
        (3600.0, "1h0m0s"),
        (86461.25, "24h1m1.25s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


@given(st.floats(min_value=0.0, max_value=1e6))
def test_a_written_duration_is_never_too_short_and_at_most_a_millisecond_too_long(seconds: float) -> None:
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"([0-9.]+)(ms|h|m|s)", go_duration(seconds))
    told = sum(float(number) * units[unit] for number, unit in parts)
    assert seconds - 1e-6 <= told <= seconds + 0.001 + 1e-6
