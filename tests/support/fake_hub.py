"""A Hugging Face hub on loopback: lists one repository's files and serves them, with ranges and with faults."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from support.serve import Handler, serving

REPOSITORY = "org/repo"
COMMIT = "5c0ffee" + "0" * 33


@dataclass
class Hub:
    """What the hub has and how it behaves. Writers: the test, and ``asked`` the server."""

    files: dict[str, bytes]
    # The next answer with contents breaks off after this many bytes; 0 never does.
    break_after: int = 0
    # The next answer with contents falls silent after this many bytes, and says so here.
    hang_after: int = 0
    hanging: threading.Event = field(default_factory=threading.Event)
    ranges: bool = True
    # Path to status and the hub's own error code.
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    # What is served in the place of a file.
    damaged: dict[str, bytes] = field(default_factory=dict)
    # Each request for contents: path, Range and Authorization.
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving_hub(hub: Hub) -> Iterator[Hub]:
    """The hub, with its ``url``, while it runs."""

    class HubHandler(Handler):
        def do_GET(self) -> None:
            if self.path.startswith("/api/models/"):
                _list(self, hub)
            else:
                _serve(self, hub)

    with serving(HubHandler) as url:
        hub.url = url
        yield hub


def _list(handler: Handler, hub: Hub) -> None:
    if handler.path != f"/api/models/{REPOSITORY}?blobs=true":
        handler.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
    elif "list" in hub.refuse:
        _refuse(handler, *hub.refuse["list"])
    else:
        files = [_entry(name, content) for name, content in hub.files.items()]
        found = {"id": REPOSITORY, "sha": COMMIT, "siblings": files}
        handler.answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": "0" * 40}
    if path.endswith(".gguf"):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
    return entry


def _serve(handler: Handler, hub: Hub) -> None:
    name = handler.path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
    wanted = handler.headers["Range"]
    hub.asked.append((name, wanted, handler.headers["Authorization"]))
    if name in hub.refuse:
        _refuse(handler, *hub.refuse[name])
        return
    content = hub.damaged.get(name, hub.files[name])
    start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and hub.ranges else 0
    if hub.break_after:
        _send_some(handler, content[start:], hub.break_after)
        hub.break_after = 0
    elif hub.hang_after:
        _send_some(handler, content[start:], hub.hang_after)
        hub.hang_after = 0
        hub.hanging.set()
        # Returns when the client has left.
        handler.rfile.read(1)
    else:
        handler.answer(206 if start else 200, content[start:])


def _send_some(handler: Handler, content: bytes, size: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[:size])
    handler.close_connection = True


def _refuse(handler: Handler, status: int, code: str) -> None:
    handler.answer(status, b"{}", {"X-Error-Code": code})
