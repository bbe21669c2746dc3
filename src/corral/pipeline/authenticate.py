"""Who is asking: a key from the headers, known by its hash."""

import hashlib
import hmac
from collections.abc import Iterable

from corral.config import ApiKey, QueueSettings
from corral.core.errors import Unauthorized
from corral.core.headers import bearer
from corral.core.principal import ANONYMOUS, INFERENCE, OPERATOR, Principal, Scope
from corral.pipeline.answer import Headers


class Keyring:
    """The known keys, as SHA-256 hashes; never changes.

    A hash that is looked up tells a timer nothing about the key behind it; the
    match itself is confirmed in constant time.
    """

    def __init__(self, keys: Iterable[ApiKey], queue: QueueSettings, *, allow_anonymous: bool) -> None:
        self._principals = {key.digest: (key.digest, _owner(key, queue)) for key in keys}
        self._anonymous = _principal(ANONYMOUS.client, ANONYMOUS.scopes, queue)
        self._keyless = allow_anonymous or not self._principals
        self.has_operator = any(principal.operator for _, principal in self._principals.values())

    def authenticate(self, headers: Headers) -> Principal:
        """The principal whose key the headers carry, ANONYMOUS's where none is needed; raises Unauthorized."""
        key = bearer(headers)
        if self._keyless and (key is None or not self._principals):
            return self._anonymous
        if key is None:
            raise Unauthorized("no API key was given; send it as 'Authorization: Bearer KEY'")
        digest = hashlib.sha256(key).digest()
        known = self._principals.get(digest)
        if known is None or not hmac.compare_digest(known[0], digest):
            raise Unauthorized("the API key is not known here; check it, or ask the operator for one")
        return known[1]


def _owner(key: ApiKey, queue: QueueSettings) -> Principal:
    return _principal(key.client, OPERATOR if key.operator else INFERENCE, queue)


def _principal(client: str, scopes: frozenset[Scope], queue: QueueSettings) -> Principal:
    return Principal(client, scopes, queue.priority_of(client), queue.weight_of(client))
