"""Opening a connection, with TLS and without."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import which

import pytest

from corral.core.errors import ConnectFailed, UpstreamTimeout
from corral.upstream.wire import Address
from support.exchanges import HELLO, LONG_S, SHORT_S, answering, ask, opened, send
from support.loops import on_both_loops
from support.raw_server import Peer, serving


@on_both_loops
async def test_a_refused_connection_is_told_without_the_address() -> None:
    async with serving() as server, opened() as client:
        pass
    with pytest.raises(ConnectFailed) as failure:
        await send(client, server)
    assert "127.0.0.1" not in failure.value.message
    assert str(server.address.port) not in failure.value.message
    assert isinstance(failure.value.__cause__, OSError)


@on_both_loops
async def test_a_name_that_does_not_resolve_is_a_failed_connection() -> None:
    async with opened() as client:
        with pytest.raises(ConnectFailed):
            await client.send(Address("nobody.invalid", 1), "GET", "/", connect_s=LONG_S, head_s=LONG_S)


@contextmanager
def unaccepting() -> Iterator[Address]:
    """A listener whose queue is full: a further connection is neither accepted nor refused."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield Address("127.0.0.1", listener.getsockname()[1])


@on_both_loops
async def test_a_connection_that_hangs_runs_into_its_limit() -> None:
    with unaccepting() as address:
        async with opened() as client:
            with pytest.raises(UpstreamTimeout) as timeout:
                await client.send(address, "GET", "/", connect_s=SHORT_S, head_s=LONG_S)
    assert timeout.value.phase == "connect"


@on_both_loops
async def test_a_connection_that_hangs_can_be_cancelled() -> None:
    with unaccepting() as address:
        async with opened() as client:
            sending = asyncio.create_task(client.send(address, "GET", "/", connect_s=LONG_S, head_s=LONG_S))
            await asyncio.sleep(0)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh self-signed certificate for 127.0.0.1, with its key in the same file."""
    if which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=corral"
    files = ["-keyout", str(file), "-out", str(file.with_suffix(".crt"))]
    subprocess.run(
        ["openssl", *request.split(), "-addext", "subjectAltName=IP:127.0.0.1", *files], check=True, capture_output=True
    )
    file.write_text(file.read_text() + file.with_suffix(".crt").read_text())
    return file


def serving_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@on_both_loops
async def test_tls_with_a_trusted_certificate_works(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
    async with serving(answering(HELLO, HELLO), tls=serving_context(certificate)) as server, opened() as client:
        assert await ask(client, server) == b"hello"
        assert await ask(client, server) == b"hello"


@on_both_loops
async def test_tls_with_an_unknown_certificate_is_a_failed_connection(certificate: Path) -> None:
    current_task = asyncio.current_task()
    async with serving(answering(), tls=serving_context(certificate)) as server, opened() as client:
        with pytest.raises(ConnectFailed):
            await ask(client, server)
    # The server's side of the handshake is a task of the event loop's.
    while handshakes := asyncio.all_tasks() - {current_task}:
        await asyncio.wait(handshakes)


@on_both_loops
async def test_tls_at_a_plain_server_is_a_failed_connection() -> None:
    async def plain(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.gone()

    async with serving(plain) as server, opened() as client:
        address = Address(server.address.host, server.address.port, tls=True)
        with pytest.raises(ConnectFailed):
            await client.send(address, "GET", "/", connect_s=LONG_S, head_s=LONG_S)
