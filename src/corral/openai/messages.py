"""The messages of a chat: roles, and content in parts."""

from typing import Annotated, Literal

from annotated_types import Len
from pydantic import Tag

from corral.openai.shapes import ARRAY, BY_SHAPE, BY_TYPE, FIRST_ONLY, STRING, JsonObject, Wire

# More than any context holds.
MESSAGES = 10_000

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class TextPart(Wire):
    """Text."""

    type: Literal["text"]
    text: str


class MediaUrl(Wire):
    """Where an image or a video is."""

    url: str
    """A `data:` URI, or bare base64. Web addresses are refused unless the operator allows them."""


class ImagePart(Wire):
    """An image, for models that take images."""

    type: Literal["image_url"]
    image_url: MediaUrl


class VideoUrlPart(Wire):
    """A video, for models that take videos."""

    type: Literal["video_url"]
    video_url: MediaUrl


class Media(Wire):
    """Sound or video: `data`, or llama-server's `url`."""

    data: str | None = None
    """The content in base64, or as a `data:` URI."""
    url: str | None = None
    """As `data`; read when there is no `data`."""
    format: str | None = None
    """`wav` or `mp3`; the model server finds it out by itself."""


class AudioPart(Wire):
    """Sound, for models that take sound."""

    type: Literal["input_audio"]
    input_audio: Media


class VideoPart(Wire):
    """A video, in llama-server's form."""

    type: Literal["input_video"]
    input_video: Media


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[AudioPart, Tag("<input_audio>")]
    | Annotated[VideoUrlPart, Tag("<video_url>")]
    | Annotated[VideoPart, Tag("<input_video>")],
    BY_TYPE,
]
Content = Annotated[
    Annotated[str, STRING] | Annotated[list[Part], FIRST_ONLY, Len(1), ARRAY],
    BY_SHAPE,
]


class CalledFunction(Wire):
    """The function that a model called, and with what."""

    name: str
    arguments: Annotated[Annotated[str, STRING] | Annotated[JsonObject, Tag("<object>")], BY_SHAPE]
    """The arguments as JSON text; llama-server also takes the object itself."""


class ToolCall(Wire):
    """A call that the model made."""

    id: str | None = None
    type: Literal["function"]
    function: CalledFunction


class Message(Wire):
    """One message; what it must hold depends on its role.

    A last message of the role `assistant` is continued by the model.
    """

    role: Role
    """Who speaks. `developer` is sent to the model as `system`."""
    content: Content | None = None
    """Text, or an array of parts. Needed by every role; an assistant's may be missing beside `tool_calls`."""
    name: str | None = None
    """Tells participants of one role apart."""
    tool_calls: Annotated[list[ToolCall], FIRST_ONLY] | None = None
    """The calls an assistant made."""
    tool_call_id: str | None = None
    """The call that a message of the role `tool` answers."""
    reasoning_content: str | None = None
    """An assistant's thoughts, as llama-server returned them."""


Messages = Annotated[list[Message], FIRST_ONLY, Len(1, MESSAGES)]
