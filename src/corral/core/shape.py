"""Most chunks of a stream differ from one another in their text only; those are read many at a time.

Exact, not a guess: chunks are taken for such where each is, byte for byte,
what stood around the text of an earlier one, with another JSON string in the
middle. What is true of that one, but for its text, is then true of each.
"""

import re
from itertools import takewhile

import orjson

# Where the text of a token stands: in a chat's delta, in a completion's choice, in a tool call. Inside a JSON string
# every quote is escaped, so nothing in a text can look like this.
TEXT = re.compile(
    rb'(?:"delta":\{"(?:reasoning_)?content|"choices":\[\{"text|"function":\{"arguments)":"'
    rb'([^"\\]*(?:\\.[^"\\]*)*)"(?=[,}])'
)
# The inside of a JSON string: no control characters, whole UTF-8 (RFC 3629), escapes but those of surrogates.
STRING = re.compile(
    rb'[^"\\\x00-\x1f\x80-\xff]*(?:(?:\\["\\/bfnrt]|\\u(?:[0-9a-cA-CefEF][0-9a-fA-F]|[dD][0-7])[0-9a-fA-F]{2}'
    rb"|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|\xed[\x80-\x9f][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})"
    rb'[^"\\\x00-\x1f\x80-\xff]*)*'
)
# Of what stands between two texts the end is searched for and the rest compared: a long needle is slow to find.
MARK_BYTES = 20
# No more is cut at once, lest a large piece be cut anew for each of many short rows.
WINDOW_BYTES = 32 * 1024


class Shape:
    """What stands around the text of a chunk: as it comes, and as it is shown to the client. Frozen."""

    __slots__ = ("_after", "_before", "_between", "_end", "_mark", "_shown_after", "_shown_before")

    def __init__(self, before: bytes, after: bytes, rename: tuple[bytes, bytes]) -> None:
        """``rename``: what to replace, where it is found first, and by what."""
        self._before, self._after = before, after
        # As an HTTP chunk that holds nothing else ends.
        self._end = after + b"\r\n"
        # What stands between two texts is ``between + mark``.
        self._mark = before[-MARK_BYTES:]
        self._between = after + before[:-MARK_BYTES]
        self._shown_before = before.replace(*rename, 1)
        self._shown_after = after if self._shown_before != before else after.replace(*rename, 1)

    @classmethod
    def of(cls, event: bytes, rename: tuple[bytes, bytes]) -> "Shape | None":
        """The shape of a chunk; None when it has no text."""
        found = TEXT.search(event)
        return found and cls(event[: found.start(1)], event[found.end(1) :], rename)

    def texts(self, events: bytes, start: int) -> list[bytes]:
        """The texts, as JSON without quotes, of the chunks of this shape that stand in a row from ``start`` on."""
        if not events.startswith(self._before, start):
            return []
        start += len(self._before)
        *parts, last = events[start : start + WINDOW_BYTES].split(self._mark)
        between, cut = self._between, -len(self._between)
        texts = [part[:cut] for part in parts if part.endswith(between)]
        if len(texts) < len(parts):
            # Something else stands among them, and ends the row.
            texts = [part[:cut] for part in takewhile(lambda part: part.endswith(between), parts)]
            last = parts[len(texts)]
        # What follows the last one is not looked at.
        text, after, _ = last.partition(self._after)
        if after:
            texts.append(text)
        return texts if _are_strings(texts) else []

    def text_of(self, chunk: bytes) -> bytes | None:
        """The text of the one chunk of this shape that an HTTP chunk holds; None if it holds anything else."""
        before, end = self._before, self._end
        size, _, event = chunk.partition(b"\r\n")
        if not (event.startswith(before) and event.endswith(end) and size == b"%x" % (len(event) - 2)):
            return None
        found = STRING.fullmatch(event, len(before), len(event) - len(end))
        return found and found[0]

    def shown_of(self, text: bytes) -> bytes:
        """The chunk with this text, for the client."""
        return b"%b%b%b" % (self._shown_before, text, self._shown_after)

    def came(self, texts: list[bytes]) -> int:
        """How many bytes the chunks with these texts were."""
        each = len(self._before) + len(self._after)
        return each * len(texts) + sum(map(len, texts))

    def shown(self, texts: list[bytes]) -> bytes:
        """The chunks with these texts, for the client."""
        return self._shown_before + (self._shown_after + self._shown_before).join(texts) + self._shown_after


def _are_strings(texts: list[bytes]) -> bool:
    """Each is the inside of one JSON string. No string goes on over a line end, so none can borrow of the next."""
    try:
        strings = orjson.loads(b'["' + b'"\n,"'.join(texts) + b'"]')
    except orjson.JSONDecodeError:
        return False
    return len(strings) == len(texts) and {*map(type, strings)} == {str}
