"""Who is asking: a key from the headers, known by its hash."""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from corral.config import ApiKey, QueueSettings
from corral.core.api_key import KeyStanding, StoredKey
from corral.core.errors import Forbidden, StoreUnavailable, Unauthorized
from corral.core.headers import bearer
from corral.core.principal import ANONYMOUS, INFERENCE, OPERATOR, Principal, Scope
from corral.pipeline.answer import Headers

UNKNOWN = "the API key is not known here; check it, or ask the operator for one"
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Known:
    """A key by its hash, and whose it is; a stored one may end, or has been revoked."""

    digest: bytes
    principal: Principal
    until: float = FOREVER
    revoked: bool = False


class Keyring:
    """The known keys, as SHA-256 hashes.

    A hash that is looked up tells a timer nothing about the key behind it; the
    match itself is confirmed in constant time. Keys of the environment never
    change; those of the store are written by ``learn``, called by who watches the store.
    """

    def __init__(
        self,
        keys: Iterable[ApiKey],
        queue: QueueSettings,
        *,
        allow_anonymous: bool,
        clock: Callable[[], float],
        stored: "StoredKeys | None" = None,
    ) -> None:
        """``clock`` tells seconds since 1970; ``stored`` are the keys of the store, where there is one."""
        self._given = {key.digest: Known(key.digest, _owner(key, queue)) for key in keys}
        self._queue = queue
        self._clock = clock
        self._stored = stored
        self._learned: dict[bytes, Known] = {}
        # The hashes of each stored key, by its id.
        self._digests: dict[str, tuple[bytes, ...]] = {}
        self._anonymous = _placed(ANONYMOUS, queue)
        self._keyed = bool(self._given) or stored is not None
        self._keyless = allow_anonymous or not self._keyed
        if stored is not None:
            self.learn(stored.keys.values(), anew=True)

    def learn(self, keys: Iterable[StoredKey], *, anew: bool) -> None:
        """These are new, or have changed; ``anew``: and there are no others."""
        if anew:
            self._learned, self._digests = {}, {}
        for key in keys:
            for digest in self._digests.get(key.id, ()):
                del self._learned[digest]
            known = {each.digest: each for each in _known(key, self._queue)}
            self._learned |= known
            self._digests[key.id] = tuple(known)

    @property
    def has_operator(self) -> bool:
        """Somebody may act as an operator, or may come to."""
        return self._stored is not None or self.has(Scope.ADMIN)

    def has(self, scope: Scope) -> bool:
        """Some key opens it."""
        return any(scope in known.principal.scopes for known in chain(self._given.values(), self._learned.values()))

    def authenticate(self, headers: Headers) -> Principal:
        """The principal whose key the headers carry, ANONYMOUS's where none is needed.

        Raises Unauthorized; StoreUnavailable for a key that may be one of a store that could not be read yet.
        """
        key = bearer(headers)
        if self._keyless and (key is None or not self._keyed):
            return self._anonymous
        if key is None:
            raise Unauthorized("no API key was given; send it as 'Authorization: Bearer KEY'")
        digest = hashlib.sha256(key).digest()
        # Whoever runs Corral decides what the keys of its environment are.
        known = self._given.get(digest) or self._learned.get(digest)
        if known is None or not hmac.compare_digest(known.digest, digest):
            raise self._unknown()
        if known.until is not FOREVER or known.revoked:
            self._ensure_valid(known)
        return known.principal

    def _unknown(self) -> Unauthorized | StoreUnavailable:
        if self._stored is not None and not self._stored.read:
            return StoreUnavailable("the keys cannot be read at the moment; try again later", retry_after_s=1.0)
        return Unauthorized(UNKNOWN)

    def _ensure_valid(self, known: Known) -> None:
        if known.revoked:
            raise Unauthorized("the API key has been revoked; ask the operator for another")
        if self._clock() >= known.until:
            raise Unauthorized("the API key has expired; ask the operator for another")


class StoredKeys:
    """The keys of the store as they were last read, by id. One writer: ``learn``, called by who watches the store.

    Outlives the keyrings, which come and go with the settings.
    """

    def __init__(self) -> None:
        self.keys: dict[str, StoredKey] = {}
        # They have been read once: a key that is not among them is unknown.
        self.read = False

    def learn(self, keys: Iterable[StoredKey], *, anew: bool) -> None:
        """These are new, or have changed; ``anew``: and there are no others."""
        self.keys = {**({} if anew else self.keys), **{key.id: key for key in keys}}
        self.read = True


def ensure_scope(principal: Principal, scope: Scope) -> None:
    """Raises Forbidden for a key that does not open this."""
    if scope not in principal.scopes:
        raise Forbidden(f"this API key is not for {scope.value}; ask the operator for one that is")


def _known(key: StoredKey, queue: QueueSettings) -> Iterable[Known]:
    principal = Principal(
        key.client,
        key.scopes,
        queue.priority_of(key.client) if key.priority is None else key.priority,
        queue.weight_of(key.client) if key.weight is None else key.weight,
        key.id,
        key.models,
        key.quota,
        key.model_quotas,
    )
    until = FOREVER if key.expires is None else key.expires
    revoked = key.standing(0.0) is KeyStanding.REVOKED
    yield Known(key.digest, principal, until, revoked)
    if key.old_digest is not None and key.old_until is not None:
        yield Known(key.old_digest, principal, min(until, key.old_until), revoked)


def _owner(key: ApiKey, queue: QueueSettings) -> Principal:
    return _placed(Principal(key.client, OPERATOR if key.operator else INFERENCE), queue)


def _placed(principal: Principal, queue: QueueSettings) -> Principal:
    """In the place in the queue that the settings give its client."""
    client = principal.client
    return Principal(client, principal.scopes, queue.priority_of(client), queue.weight_of(client))
