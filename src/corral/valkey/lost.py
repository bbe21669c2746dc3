"""The error of a Valkey that cannot be used; apart from the way to it, so that to know it imports no redis."""


class ValkeyLost(Exception):
    """It cannot be reached, does not answer in time, or refuses. The text is for operators, and holds no URL."""

    def __init__(self, why: str, *, sent: bool = False) -> None:
        """``sent``: it may have done what it was asked, or do it yet."""
        super().__init__(why)
        self.sent = sent
