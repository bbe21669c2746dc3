"""A Lua script, and the name that Valkey keeps it by."""

from hashlib import sha1


class Script:
    """The server is sent the digest, and the text only when it does not know it yet."""

    def __init__(self, text: str) -> None:
        self.text = text
        # Only a name.
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
