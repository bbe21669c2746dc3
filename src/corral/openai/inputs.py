"""How many prompts or embedding inputs a request holds."""

from corral.core.errors import InvalidRequest
from corral.openai.complaints import INVALID_VALUE
from corral.openai.policy import Policy

Inputs = str | list[int] | list[str | list[int]]


def count_inputs(inputs: Inputs, param: str, policy: Policy) -> int:
    """A text or one array of token ids is one; raises ``InvalidRequest`` when there are too many."""
    count = 1 if isinstance(inputs, str) or isinstance(inputs[0], int) else len(inputs)
    if count > policy.max_inputs:
        raise InvalidRequest(
            f"'{param}' must have at most {policy.max_inputs} entries", param=param, code=INVALID_VALUE
        )
    return count
