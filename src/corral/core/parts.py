"""How a call of many inputs is cut into parts that leave room for others.

64 embedding inputs sent at once to a llama-server with two slots made a chat
behind them wait for 54 s; cut into parts, others take turns with them.
"""


def part_inputs(inputs: int, n: int, slots: int) -> int:
    """How many inputs a part has: all of them where they fit, else as many as take half of the slots, at least one.

    With half of the slots two parts can run at once, and a slot that becomes
    free is never kept idle for a part that wants all of them.
    """
    if inputs * n <= max(slots, 1):
        return inputs
    return max(1, slots // 2 // n)


def part_ranges(inputs: int, size: int) -> list[range]:
    """The inputs of each part, in order."""
    return [range(start, min(start + size, inputs)) for start in range(0, inputs, size)]
