"""Hosts of their own for processes: network namespaces, each joined to this process's by a link that can be cut.

Works where this process may do as it likes with its own network, as within ``unshare --map-root-user --net``.
"""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

# What enters namespaces and joins them.
TOOLS = ("unshare", "nsenter", "ip")
NAMESPACE = ("unshare", "--map-root-user", "--net")
# Setting up an interface takes milliseconds.
LIMIT_S = 20.0
# A hardware address that no interface has.
NOBODY = "02:00:00:00:00:99"
# The end of each link at the other host.
FAR_END = "uplink"


def why_not() -> str | None:
    """Why there can be no namespaces here; None when there can be."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"needs {' and '.join(missing)}"
    # What makes a link is tried too: the kernel may know of no veth.
    tried = subprocess.run(
        [*NAMESPACE, "ip", "link", "add", "here", "type", "veth", "peer", "name", "there"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return None if tried.returncode == 0 else f"network namespaces are not permitted: {tried.stderr.strip()}"


class Host:
    """A network with one link to ours. Its processes see nothing else; it ends with the ``with`` block."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.address = f"10.77.{number}.2"
        self._gateway = f"10.77.{number}.1"
        # A namespace lasts as long as a process is in it.
        self._keeper = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self._until_kept()
            ip("link", "add", name, "type", "veth", "peer", "name", FAR_END, "netns", str(self._keeper.pid))
            self._give_addresses()
        except BaseException:
            self._let_go()
            raise

    @property
    def within(self) -> tuple[str, ...]:
        """What begins a command that is to run there."""
        return ("nsenter", "--target", str(self._keeper.pid), "--net")

    def take_down(self) -> None:
        """Cut the link so that our side knows: there is no way to the host any more."""
        ip("link", "set", self.name, "down")

    def take_up(self) -> None:
        """Mend what ``take_down`` has done."""
        ip("link", "set", self.name, "up")

    def swallow(self) -> None:
        """Lose in silence whatever is sent in either direction: it goes to a hardware address that nobody has."""
        ip("neigh", "replace", self.address, "lladdr", NOBODY, "nud", "permanent", "dev", self.name)
        ip("neigh", "replace", self._gateway, "lladdr", NOBODY, "nud", "permanent", "dev", FAR_END, within=self.within)

    def deliver(self) -> None:
        """Mend what ``swallow`` has done."""
        ip("neigh", "del", self.address, "dev", self.name)
        ip("neigh", "del", self._gateway, "dev", FAR_END, within=self.within)

    def close(self) -> None:
        try:
            # The kernel takes a namespace down in its own time, and the link with it: its name would be taken.
            ip("link", "del", self.name)
        finally:
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _let_go(self) -> None:
        self._keeper.kill()
        self._keeper.wait()
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                pipe.close()

    def _until_kept(self) -> None:
        """The keeper answers once it is where it belongs."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(b"\n")
        self._keeper.stdin.flush()
        assert self._keeper.stdout.read(1) == b"\n"

    def _give_addresses(self) -> None:
        ip("addr", "add", f"{self._gateway}/30", "dev", self.name)
        ip("link", "set", self.name, "up")
        ip("addr", "add", f"{self.address}/30", "dev", FAR_END, within=self.within)
        ip("link", "set", FAR_END, "up", within=self.within)
        ip("link", "set", "lo", "up", within=self.within)


def ip(*arguments: str, within: tuple[str, ...] = ()) -> None:
    """Change a network, ours if no other is named."""
    done = subprocess.run([*within, "ip", *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def others_here() -> list[int]:
    """The other processes of our user namespace: whatever was started within it and still runs."""
    ours = os.readlink("/proc/self/ns/user")
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        # It may have ended since it was listed, or be none of ours.
        with suppress(OSError):
            if os.readlink(directory / "ns" / "user") == ours and int(directory.name) != os.getpid():
                found.append(int(directory.name))
    return found
