"""A client is who its key says."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from corral.config import ApiKey, QueueSettings
from corral.core.api_key import StoredKey, digest_of
from corral.core.errors import Forbidden, StoreUnavailable, Unauthorized
from corral.core.principal import ANONYMOUS, OPERATOR, Principal, Priority, Quota, Scope
from corral.pipeline.answer import Headers
from corral.pipeline.authenticate import Keyring, StoredKeys, ensure_scope


def api_key(key: str, client: str, *, operator: bool = False) -> ApiKey:
    return ApiKey(digest=hashlib.sha256(key.encode()).digest(), client=client, operator=operator)


KEYS = (api_key("key-a", "team-a"), api_key("key-b", "team-b", operator=True))
NO_CLASSES = QueueSettings()
KEYRING = Keyring(KEYS, NO_CLASSES, allow_anonymous=False, clock=time.time)


def keyring_of(
    keys: Iterable[ApiKey],
    stored: StoredKeys | None = None,
    *,
    allow_anonymous: bool = False,
    queue: QueueSettings = NO_CLASSES,
    now: float = 1000.0,
) -> Keyring:
    return Keyring(keys, queue, allow_anonymous=allow_anonymous, clock=lambda: now, stored=stored)


def bearer(key: bytes) -> Headers:
    return [(b"host", b"x"), (b"authorization", b"Bearer " + key)]


@pytest.mark.parametrize(
    "headers",
    [
        bearer(b"key-a"),
        [(b"authorization", b"bearer key-a")],
        [(b"x-api-key", b"key-a")],
        [(b"authorization", b"Bearer key-a"), (b"x-api-key", b"key-a")],
    ],
)
def test_a_known_key_is_its_client(headers: Headers) -> None:
    assert KEYRING.authenticate(headers) == Principal("team-a")


def test_the_key_of_an_operator_is_an_operators() -> None:
    assert KEYRING.authenticate(bearer(b"key-b")) == Principal("team-b", OPERATOR)


@pytest.mark.parametrize(
    "key",
    [b"key-c", b"key-a b", b"KEY-A", b"key", b"key-aa", b"\xff\xfe", hashlib.sha256(b"key-a").hexdigest().encode()],
)
def test_an_unknown_key_is_refused(key: bytes) -> None:
    with pytest.raises(Unauthorized, match="not known"):
        KEYRING.authenticate(bearer(key))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Basic a2V5LWE6")],
        # It must be clear which key is meant.
        [*bearer(b"key-a"), *bearer(b"key-b")],
        [*bearer(b"key-a"), (b"x-api-key", b"key-b")],
    ],
)
def test_a_request_without_one_clear_key_is_refused(headers: Headers) -> None:
    with pytest.raises(Unauthorized, match="no API key"):
        KEYRING.authenticate(headers)


def test_no_message_repeats_the_key() -> None:
    with pytest.raises(Unauthorized) as caught:
        KEYRING.authenticate(bearer(b"secret-of-someone"))
    assert "secret-of-someone" not in str(caught.value)
    assert "secret-of-someone" not in repr(caught.value.__dict__)


def test_without_any_key_everyone_is_anonymous_whatever_they_send() -> None:
    keyring = keyring_of(())
    assert keyring.authenticate([]) == ANONYMOUS
    assert keyring.authenticate(bearer(b"key-a")) == ANONYMOUS


def test_where_anonymous_clients_are_allowed_a_key_still_counts() -> None:
    keyring = keyring_of(KEYS, allow_anonymous=True)
    assert keyring.authenticate([]) == ANONYMOUS
    assert keyring.authenticate(bearer(b"key-a")).client == "team-a"


def test_where_anonymous_clients_are_allowed_a_wrong_key_is_still_refused() -> None:
    with pytest.raises(Unauthorized, match="not known"):
        keyring_of(KEYS, allow_anonymous=True).authenticate(bearer(b"key-c"))


def test_it_tells_whether_there_is_an_operator() -> None:
    assert KEYRING.has_operator
    assert not keyring_of(KEYS[:1]).has_operator


# -- keys of the store ------------------------------------------------------------


def stored_key(written: str = "stored", **fields: Any) -> StoredKey:
    return StoredKey("key_1", digest_of(written), "sto", "team-s", **fields)


def stored_keys(*keys: StoredKey) -> StoredKeys:
    known = StoredKeys()
    known.learn(keys, anew=True)
    return known


def test_a_key_of_the_store_is_its_client_on_its_terms() -> None:
    quota, small = Quota(requests=5), Quota(tokens=7)
    key = stored_key(
        scopes=frozenset({Scope.METRICS}),
        models=("a*",),
        quota=quota,
        model_quotas=(("ab", small),),
        priority=Priority.BATCH,
        weight=3.0,
    )
    found = keyring_of(KEYS, stored_keys(key)).authenticate(bearer(b"stored"))
    expected = Principal(
        "team-s", frozenset({Scope.METRICS}), Priority.BATCH, 3.0, "key_1", ("a*",), quota, (("ab", small),)
    )
    assert found == expected
    assert found.account == "key:key_1"


def test_what_a_key_does_not_say_of_its_place_in_the_queue_the_settings_say() -> None:
    queue = QueueSettings(interactive=("team-s",), weights=(("team-s", 4.0),))
    found = keyring_of((), stored_keys(stored_key()), queue=queue).authenticate(bearer(b"stored"))
    assert (found.priority, found.weight) == (Priority.INTERACTIVE, 4.0)


def test_keys_of_the_environment_go_on_beside_those_of_the_store() -> None:
    keyring = keyring_of(KEYS, stored_keys(stored_key("key-a")))
    assert keyring.authenticate(bearer(b"key-a")).client == "team-a"


@pytest.mark.parametrize(
    ("fields", "why"),
    [({"expires": 1000.0}, "expired"), ({"revoked": 900.0}, "revoked"), ({"revoked": 2000.0}, "revoked")],
)
def test_a_key_that_is_over_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(Unauthorized, match=why):
        keyring_of((), stored_keys(stored_key(**fields))).authenticate(bearer(b"stored"))


def test_a_key_counts_until_it_expires() -> None:
    keyring = keyring_of((), stored_keys(stored_key(expires=1000.5)))
    assert keyring.authenticate(bearer(b"stored")).client == "team-s"


@pytest.mark.parametrize(("until", "counts"), [(1000.5, True), (1000.0, False)])
def test_the_secret_before_a_rotation_counts_for_its_time(until: float, counts: bool) -> None:
    keyring = keyring_of((), stored_keys(stored_key(old_digest=digest_of("old"), old_until=until)))
    assert keyring.authenticate(bearer(b"stored")).key_id == "key_1"
    if counts:
        assert keyring.authenticate(bearer(b"old")).key_id == "key_1"
    else:
        with pytest.raises(Unauthorized):
            keyring.authenticate(bearer(b"old"))


def test_a_store_without_keys_opens_no_door() -> None:
    with pytest.raises(Unauthorized):
        keyring_of((), stored_keys()).authenticate([])


def test_a_key_may_be_one_of_a_store_that_could_not_be_read() -> None:
    keyring = keyring_of(KEYS, StoredKeys())
    assert keyring.authenticate(bearer(b"key-a")).client == "team-a"
    with pytest.raises(StoreUnavailable):
        keyring.authenticate(bearer(b"stored"))


def test_changes_of_the_store_count_when_they_are_learned() -> None:
    keyring = keyring_of((), stored_keys(stored_key()))
    keyring.learn([stored_key(revoked=1.0)], anew=False)
    with pytest.raises(Unauthorized, match="revoked"):
        keyring.authenticate(bearer(b"stored"))
    keyring.learn([], anew=True)
    with pytest.raises(Unauthorized, match="not known"):
        keyring.authenticate(bearer(b"stored"))


def test_nothing_is_left_of_a_secret_that_was_rotated() -> None:
    keyring = keyring_of((), stored_keys(stored_key("old"), replace(stored_key("other"), id="key_2")))
    keyring.learn([stored_key("new")], anew=False)
    assert keyring.authenticate(bearer(b"new")).key_id == "key_1"
    assert keyring.authenticate(bearer(b"other")).key_id == "key_2"
    with pytest.raises(Unauthorized, match="not known"):
        keyring.authenticate(bearer(b"old"))


def test_where_there_is_a_store_somebody_may_become_an_operator() -> None:
    assert keyring_of((), stored_keys()).has_operator


def test_a_key_opens_only_what_it_is_for() -> None:
    ensure_scope(Principal("a"), Scope.INFERENCE)
    with pytest.raises(Forbidden, match="admin"):
        ensure_scope(Principal("a"), Scope.ADMIN)


@pytest.mark.parametrize(
    ("patterns", "model", "may"),
    [((), "any", True), (("llama-*",), "llama-8b", True), (("llama-*",), "qwen", False), (("a", "b"), "b", True),
     (("LLAMA",), "llama", False), (("*",), "x/y:z", True)],
)  # fmt: skip
def test_a_key_may_ask_for_the_models_of_its_patterns(patterns: tuple[str, ...], model: str, may: bool) -> None:
    assert Principal("a", models=patterns).may_ask(model) is may
