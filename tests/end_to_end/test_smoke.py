"""The shortest way through all of it, on the fake."""

from pathlib import Path

from support.fake import FakeLlama
from support.gateway import Gateway


def test_a_chat_is_answered(tmp_path: Path) -> None:
    with FakeLlama() as fake, Gateway(tmp_path, MODEL_UPSTREAMS=f"m={fake.url}") as gateway:
        reply = gateway.post(
            "/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 30}
        )
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == "m"
        assert reply.json()["usage"]["completion_tokens"] == 16
