"""URLs of llama-servers, CORS origins, hosts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.config.problems import Mistake
from corral.config.urls import bind_host, is_loopback, origin, upstream_url


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("https://llama.example.org", "https://llama.example.org"),
        ("http://[::1]:8080/prefix/", "http://[::1]:8080/prefix"),
        ("http://llama_1:8080", "http://llama_1:8080"),
        (" http://a ", "http://a"),
    ],
)
def test_an_upstream_is_scheme_host_port_and_prefix(written: str, meant: str) -> None:
    assert upstream_url(written) == meant


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        ("127.0.0.1:8080", "http:// or https://"),
        ("localhost", "http:// or https://"),
        ("ftp://a", "http:// or https://"),
        ("http://", "host and port"),
        ("http://:8080", "host and port"),
        ("http://a:99999", "host and port"),
        ("http://a:0", "host and port"),
        ("http://a:", "host and port"),
        ("http://a b", "host and port"),
        ("http://127.0.0.256", "host and port"),
        ("http://[::1", "not a URL"),
        ("http://[x]", "not a URL"),
        ("http://a/ b", "path"),
        ("http://a/v1", "/v1"),
        ("http://a/x/v1/", "/v1"),
        ("http://a?x=1", "query"),
        ("http://a#x", "fragment"),
        ("http://u:p@a", "user name or password"),
        (8080, "not a URL"),
    ],
)
def test_a_bad_upstream_is_refused_with_the_reason(written: object, wrong: str) -> None:
    with pytest.raises(Mistake, match=wrong):
        upstream_url(written)


@given(st.text() | st.text().map(lambda rest: f"http://{rest}"))
def test_an_accepted_upstream_is_accepted_again_unchanged(text: str) -> None:
    try:
        url = upstream_url(text)
    except Mistake:
        return
    assert upstream_url(url) == url
    assert not set(url) & set(" @?#\r\n\t")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("*", "*"),
        ("https://app.example.org", "https://app.example.org"),
        ("HTTP://Localhost:3000", "http://localhost:3000"),
        ("https://a:443", "https://a"),
        ("http://a:80", "http://a"),
        ("http://a:443", "http://a:443"),
        ("app://obsidian.md", "app://obsidian.md"),
    ],
)
def test_an_origin_is_kept_as_browsers_send_it(written: str, meant: str) -> None:
    assert origin(written) == meant


@pytest.mark.parametrize(
    "written", ["", "null", "example.org", "https://", "https://a/", "https://a/x", "https://*.a.org", "https://a:b", 5]
)
def test_what_is_no_origin_is_refused_with_what_would_be_right(written: object) -> None:
    with pytest.raises(Mistake) as caught:
        origin(written)
    assert "scheme://host[:port]" in str(caught.value.right)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_loopback_hosts(host: str) -> None:
    assert is_loopback(bind_host(host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org", "localhost.example.org", "::2"])
def test_hosts_that_other_machines_may_reach(host: str) -> None:
    assert not is_loopback(bind_host(host))


@pytest.mark.parametrize("host", ["", "http://0.0.0.0", "127.0.0.256", "a b", "a:80", ":::", "8000:", 5, "[::1]"])
def test_what_is_no_host_is_refused(host: object) -> None:
    with pytest.raises(Mistake):
        bind_host(host)
