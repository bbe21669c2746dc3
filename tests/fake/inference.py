"""Chat, completions and embeddings: checks the body as llama-server does, makes tasks, and reads their results."""

import asyncio
import json
from collections.abc import AsyncIterator

from fake.events import Event, Sort, Writer
from fake.settings import Settings
from fake.shapes import Answer, Json, embedding, error
from fake.slots import Kind, Result, Slots, Task
from fake.text import NOTHING_BEGUN, Begun, Plan, chat_prompt, count_tokens, plan


class Refused(Exception):
    """An answer other than 200; ``body`` is its JSON."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


def invalid(text: str) -> Refused:
    return Refused(400, error(400, "invalid_request_error", text))


class Engine:
    """The model behind the HTTP layer. ``seen`` is its prefix cache, written by ``_cached``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.slots = Slots(settings)
        self.seen: list[str] = []

    # -- what comes in --------------------------------------------------------

    def fields(self, body: bytes) -> Json:
        try:
            return dict(json.loads(body))
        except (ValueError, TypeError) as problem:
            # The wording is that of the C++ library; its number is what clients may look for.
            raise invalid(f"[json.exception.parse_error.101] parse error: {problem}") from problem

    def chat(self, fields: Json) -> list[list[Task]]:
        """The tasks of a chat, by prompt; raises ``Refused``."""
        check_chat(fields)
        prompt, begun = chat_prompt(fields["messages"], echo=fields.get("echo") is True)
        return self._tasks(fields, [(prompt + begun.text, prompt, begun)], overhead=4 * len(fields["messages"]))

    def completion(self, fields: Json) -> list[list[Task]]:
        """The tasks of a text completion, by prompt; raises ``Refused``."""
        if "prompt" not in fields:
            raise invalid("[json.exception.out_of_range.403] key 'prompt' not found")
        prompts = inputs(fields["prompt"], '"prompt"')
        return self._tasks(fields, [(text, text, NOTHING_BEGUN) for text in prompts], overhead=0)

    def embeddings(self, fields: Json) -> list[list[Task]]:
        """A task for each input; raises ``Refused``."""
        if "input" not in fields and "content" not in fields:
            raise invalid('"input" or "content" must be provided')
        if fields.get("encoding_format", "float") not in ("float", "base64"):
            raise invalid("The format to return the embeddings in. Can be either float or base64")
        results: asyncio.Queue[Result] = asyncio.Queue()
        texts = inputs(fields.get("input", fields.get("content")), '"input"')
        sizes = [count_tokens(text) for text in texts]
        self._check_batch(sizes)
        return [[Task(i, Plan((), "stop"), size, 0, results)] for i, size in enumerate(sizes)]

    def _tasks(self, fields: Json, prompts: list[tuple[str, str, Begun]], overhead: int) -> list[list[Task]]:
        n = self._choices(fields)
        results: asyncio.Queue[Result] = asyncio.Queue()
        stream, progress = fields.get("stream") is True, bool(fields.get("return_progress"))
        groups = []
        for position, (whole, prompt, begun) in enumerate(prompts):
            size = count_tokens(whole) + overhead
            self._check_context(size)
            cached = self._cached(whole, size)
            group = []
            for choice in range(n):
                made = plan(fields, prompt, index=choice, begun=begun, tokens=self.settings.tokens)
                index = position * n + choice
                group.append(Task(index, made, size, cached, results, stream, progress, child=choice > 0))
            groups.append(group)
        return groups

    def _choices(self, fields: Json) -> int:
        n = fields.get("n")
        if n is None:
            return 1
        if not isinstance(n, int):
            name = {str: "string", list: "array", dict: "object", bool: "boolean"}.get(type(n), "number")
            raise invalid(f"Field 'n': [json.exception.type_error.302] type must be number, but is {name}")
        if not 1 <= n <= self.settings.slots:
            raise invalid(f"Field 'n': Value must be between 1 <= value <= {self.settings.slots}, but got {n}")
        return n

    def _check_context(self, size: int) -> None:
        limit = self.settings.n_ctx
        if size >= limit:
            text = f"request ({size} tokens) exceeds the available context size ({limit} tokens), try increasing it"
            more = {"n_prompt_tokens": size, "n_ctx": limit}
            raise Refused(400, error(400, "exceed_context_size_error", text, **more))

    def _check_batch(self, sizes: list[int]) -> None:
        limit = self.settings.n_ubatch
        if not min(sizes):
            raise invalid("Input content cannot be empty")
        if max(sizes) > limit:
            text = f"input ({max(sizes)} tokens) is too large to process. increase the physical batch size"
            raise Refused(500, error(500, "server_error", f"{text} (current batch size: {limit})"))

    def _cached(self, prompt: str, size: int) -> int:
        """Tokens of the longest common beginning with a prompt seen before; at least one is always processed anew."""
        common = max((_common(prompt, old) for old in self.seen), default=0)
        self.seen = [*self.seen[-7:], prompt]
        return max(0, min(count_tokens(prompt[:common]), size - 1))

    # -- what goes out --------------------------------------------------------

    def post(self, groups: list[list[Task]]) -> list[Task]:
        """Hand the tasks to the slots, or to the deferred queue; all of them in a row."""
        for group in groups:
            self.slots.post(group)
        return [task for group in groups for task in group]

    async def finish(self, tasks: list[Task]) -> None:
        """Wait for the end, whether or not somebody else still does, as llama-server does."""
        ended = 0
        while ended < len(tasks):
            ended += (await tasks[0].results.get()).kind is Kind.DONE

    def whole(self, fields: Json, tasks: list[Task], *, chat: bool) -> Json:
        return Answer(chat, self.settings.alias).whole(tasks, logprobs=bool(fields.get("logprobs")))

    def embedded(self, fields: Json, tasks: list[Task]) -> Json:
        texts = inputs(fields.get("input", fields.get("content")), '"input"')
        packed = fields.get("encoding_format") == "base64"
        spent = sum(task.prompt_tokens for task in tasks)
        return {
            "model": fields.get("model", self.settings.alias),
            "object": "list",
            "usage": {"prompt_tokens": spent, "total_tokens": spent},
            "data": [embedding(self.settings, i, text, packed) for i, text in enumerate(texts)],
        }

    async def stream(self, fields: Json, tasks: list[Task], first: Result, *, chat: bool) -> AsyncIterator[Event]:
        """The events of a stream, as results come; ``first`` has been taken from them already.

        That a task has begun is no event when it comes first: then it sends the headers.
        """
        writer = Writer(fields, Answer(chat, self.settings.alias))
        if first.kind is not Kind.BEGUN:
            for event in writer.events(first):
                yield event
        ended = 0
        while ended < len(tasks):
            result = await tasks[0].results.get()
            ended += result.kind is Kind.DONE
            for event in writer.events(result):
                yield event
        yield Event(Sort.DONE, b"data: [DONE]\n\n")


def check_chat(fields: Json) -> None:
    """llama-server's own checks of a chat, in its order."""
    messages = fields.get("messages")
    if messages is None:
        raise invalid("'messages' is required")
    if not isinstance(messages, list):
        raise invalid("Expected 'messages' to be an array")
    if any(message.get("role") != "assistant" and "content" not in message for message in messages):
        raise invalid("All non-assistant messages must contain 'content'")
    if [message.get("role") for message in messages[-2:]] == ["assistant"] * 2:
        raise invalid("Cannot have 2 or more assistant messages at the end of the list.")
    choice = fields.get("tool_choice")
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        raise invalid(f"Invalid tool_choice: {choice}")
    if fields.get("top_logprobs") and not fields.get("logprobs"):
        raise invalid("top_logprobs requires logprobs to be set to true")
    if fields.get("tools") and fields.get("logprobs") and fields.get("stream"):
        raise invalid("logprobs is not supported with tools + stream")


def inputs(given: object, name: str) -> list[str]:
    """The prompts of a field that is a text, tokens, or a list of either; tokens become one word each."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise invalid(f"{name} must not be empty")
    if not isinstance(given, list):
        raise invalid(f"{name} elements must be a string, a list of tokens, a list of mixed strings & tokens")
    if all(isinstance(item, int) for item in given):
        return [" ".join(map(str, given))]
    return [text for item in given for text in inputs(item, name)]


def _common(one: str, other: str) -> int:
    """The length of the beginning that two texts share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
