"""Replicas at other hosts: the tests of ``hosts/cut_links.py``, in network namespaces of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import hosts

ROOT = Path(__file__).parents[2]
SCENARIOS = ROOT / "tests" / "end_to_end" / "hosts" / "cut_links.py"
# The kernel needs its time to give a host up, several times in a row.
LIMIT_S = 240.0


@pytest.mark.timeout(LIMIT_S + 20)
@pytest.mark.parametrize("cut", ["down", "silence"])
def test_links_to_other_hosts_are_cut_and_mended(cut: str) -> None:
    if reason := hosts.why_not():
        pytest.skip(reason)
    command = [*hosts.NAMESPACE, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(SCENARIOS), "-k", cut]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as inner:
        try:
            told, _ = inner.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            # With all that it has started.
            os.killpg(inner.pid, signal.SIGKILL)
            raise
    # A cut that no test knows is an error too: pytest ends with 5 then.
    assert inner.returncode == 0, told
