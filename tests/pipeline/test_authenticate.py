"""A client is who its key says."""

import hashlib

import pytest

from corral.config import ApiKey, QueueSettings
from corral.core.errors import Unauthorized
from corral.core.principal import ANONYMOUS, OPERATOR, Principal
from corral.pipeline.answer import Headers
from corral.pipeline.authenticate import Keyring


def api_key(key: str, client: str, *, operator: bool = False) -> ApiKey:
    return ApiKey(digest=hashlib.sha256(key.encode()).digest(), client=client, operator=operator)


KEYS = (api_key("key-a", "team-a"), api_key("key-b", "team-b", operator=True))
NO_CLASSES = QueueSettings()
KEYRING = Keyring(KEYS, NO_CLASSES, allow_anonymous=False)


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
    keyring = Keyring((), NO_CLASSES, allow_anonymous=False)
    assert keyring.authenticate([]) == ANONYMOUS
    assert keyring.authenticate(bearer(b"key-a")) == ANONYMOUS


def test_where_anonymous_clients_are_allowed_a_key_still_counts() -> None:
    keyring = Keyring(KEYS, NO_CLASSES, allow_anonymous=True)
    assert keyring.authenticate([]) == ANONYMOUS
    assert keyring.authenticate(bearer(b"key-a")).client == "team-a"


def test_where_anonymous_clients_are_allowed_a_wrong_key_is_still_refused() -> None:
    with pytest.raises(Unauthorized, match="not known"):
        Keyring(KEYS, NO_CLASSES, allow_anonymous=True).authenticate(bearer(b"key-c"))


def test_it_tells_whether_there_is_an_operator() -> None:
    assert KEYRING.has_operator
    assert not Keyring(KEYS[:1], NO_CLASSES, allow_anonymous=False).has_operator
