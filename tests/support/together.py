"""Which tests run in the same process, where several processes run them."""

import re

from xdist.scheduler import LoadScopeScheduling

# Two engines at once would be in each other's way: either uses all the processors.
ENGINE = ("tests/end_to_end/real/", "tests/upstream/test_embedded.py", "tests/test_fake_llama_engine.py")
# The gateways of a door are shared by all files that use them.
DOOR = re.compile(r"^tests/end_to_end/.*\[(app|lane)\b")


class Together(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """Gives groups of tests to processes, each group to one of them, in the order of their first tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(nodeid: str) -> str:
    """What a test shares with others: an engine, a door, or a file."""
    if nodeid.startswith(ENGINE):
        return "engine"
    door = DOOR.match(nodeid)
    return door[1] if door else nodeid.partition("::")[0]
