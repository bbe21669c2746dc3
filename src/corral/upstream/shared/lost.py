"""The error of a Valkey that cannot be used; apart from its connection, so that to know it imports no redis."""


class ValkeyLost(Exception):
    """It cannot be reached, does not answer in time, or refuses. The text is for operators, and holds no URL."""
