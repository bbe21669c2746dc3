"""Where images, sound and video of a chat may come from.

llama-server reads ``data:`` URIs and bare base64; it also downloads web
addresses, from inside the operator's network, and with ``--media-path`` reads
local files.
"""

from collections.abc import Iterator, Sequence

from corral.core.errors import InvalidRequest
from corral.openai.complaints import INVALID_VALUE, MISSING
from corral.openai.messages import AudioPart, ImagePart, Media, Message, TextPart, VideoPart, VideoUrlPart
from corral.openai.policy import Policy

Part = TextPart | ImagePart | AudioPart | VideoUrlPart | VideoPart

# Longer than any scheme with its "://"; base64 holds no colon.
SCHEME_CHARS = 32


def ensure_local(messages: Sequence[Message], policy: Policy) -> None:
    """Refuse every reference that would make llama-server fetch or open something, web addresses if not allowed."""
    if all(type(message.content) is str for message in messages):
        return
    for param, reference in _references(messages):
        start = reference[:SCHEME_CHARS].strip().lower()
        if start.startswith("data:"):
            continue
        # llama-server looks for "http" at the start only, with or without "://".
        if start.startswith("http"):
            if not policy.remote_images:
                raise _refusal(param, "a web address, and this server fetches none")
        elif ":" in start:
            raise _refusal(param, "an address of a kind that is not allowed")


def _references(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    for at, message in enumerate(messages):
        if isinstance(message.content, list):
            for index, part in enumerate(message.content):
                yield from _references_of(part, f"messages[{at}].content[{index}]")


def _references_of(part: Part, param: str) -> Iterator[tuple[str, str]]:
    match part:
        case ImagePart():
            yield f"{param}.image_url.url", part.image_url.url
        case VideoUrlPart():
            yield f"{param}.video_url.url", part.video_url.url
        case AudioPart():
            yield from _media(part.input_audio, f"{param}.input_audio")
        case VideoPart():
            yield from _media(part.input_video, f"{param}.input_video")
        case TextPart():
            pass


def _media(media: Media, param: str) -> Iterator[tuple[str, str]]:
    if media.data is None and media.url is None:
        raise InvalidRequest(f"'{param}.data' is required", param=f"{param}.data", code=MISSING)
    if media.data is not None:
        yield f"{param}.data", media.data
    if media.url is not None:
        yield f"{param}.url", media.url


def _refusal(param: str, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{param}' is {what}; send the content itself as a data: URI in base64", param=param, code=INVALID_VALUE
    )
