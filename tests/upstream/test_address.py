"""Where an upstream listens, as people write it."""

import pytest

from corral.upstream.address import Address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8081", Address("127.0.0.1", 8081)),
        ("http://127.0.0.1:8081/", Address("127.0.0.1", 8081)),
        ("http://localhost", Address("localhost", 80)),
        ("https://llama.example", Address("llama.example", 443, tls=True)),
        ("https://llama.example:8443/a/b/", Address("llama.example", 8443, tls=True, prefix="/a/b")),
        ("http://[::1]:9000", Address("::1", 9000)),
        ("HTTP://LLAMA.example:80", Address("llama.example", 80)),
    ],
)
def test_a_url_names_host_port_and_prefix(url: str, address: Address) -> None:
    assert Address.parse(url) == address


@pytest.mark.parametrize("url", ["http://h:1/v1", "http://h:1/v1/", "http://h:1//v1"])
def test_a_v1_at_the_end_is_not_part_of_the_prefix(url: str) -> None:
    assert Address.parse(url).prefix == ""
    assert Address.parse("http://h:1/llama/v1").prefix == "/llama"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "ftp://h:1",
        "unix:///run/llama.sock",
        "http://",
        "http://:8080",
        "http://h:0",
        "http://h:65536",
        "http://h:port",
        "http://h:1/?a=b",
        "http://h:1/#a",
        "http://user:secret@h:1",
        "http://h:1/a b",
        "http://h:1/\r\nx: y",
        "http://h\u00e9:1",
        "http://a..b:1",
        f"http://{'a' * 64}:1",
        "http://[::1:8080",
    ],
)
def test_what_is_no_upstream_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Address.parse(url)


def test_a_refusal_does_not_repeat_a_password() -> None:
    with pytest.raises(ValueError, match="user name or password") as refusal:
        Address.parse("http://user:secret@h:1")
    assert "secret" not in str(refusal.value)


def test_as_text_it_is_a_host_header() -> None:
    assert str(Address("127.0.0.1", 8081, prefix="/a")) == "127.0.0.1:8081"
    assert str(Address("::1", 9000)) == "[::1]:9000"
