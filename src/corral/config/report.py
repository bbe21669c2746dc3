"""Turns what Pydantic found wrong into problems that name the setting as the operator wrote it."""

from pydantic_core import ErrorDetails

from corral.config.problems import Given, Mistake, Problems, shown

# Pydantic's kinds of errors that our types can give, beside ``Mistake``; ``{value}`` is what the operator wrote.
WRONG = {
    "greater_than": "{value} is not more than {gt}",
    "greater_than_equal": "{value} is less than {ge}",
    "less_than_equal": "{value} is more than {le}",
    "literal_error": "{value} is none of {expected}",
    "missing": "is not given",
}


def report(detail: ErrorDetails, given: Given, problems: Problems, *, example: str) -> None:
    """Add one of ``ValidationError.errors()``; the value is quoted for kinds that no secret can have."""
    context = detail.get("ctx", {})
    error = context.get("error")
    right = f"write e.g. {given.spell(example)}"
    if isinstance(error, Mistake):
        problems.add(given, error.wrong, error.right or right)
    elif detail["type"] in WRONG:
        problems.add(given, WRONG[detail["type"]].format(value=shown(given.value), **context), right)
    else:
        # Pydantic's own message without its input.
        problems.add(given, detail["msg"], right)
