"""Conversations with tools and thoughts that the smallest of models can go on with: it repeats what it sees."""

import json
from typing import Any

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def weather_talk(*cities: str) -> list[dict[str, Any]]:
    """One call of ``get_weather`` for each city but the last, about which the question is open."""
    *asked, last = cities
    talk = [message for city in asked for message in _weather_of(city)]
    return [*talk, _question(f"What is the weather in {last}?")]


def thoughtful_talk() -> list[dict[str, Any]]:
    """Sums, each thought over before it is said; the last one is open."""
    talk = []
    for number in (1, 2):
        talk += [
            _question(f"What is {number}+1?"),
            {
                "role": "assistant",
                "reasoning_content": f"I add {number} and 1.",
                "content": f"It is {number + 1}.",
            },
        ]
    return [*talk, _question("What is 3+1?")]


def _weather_of(city: str) -> list[dict[str, Any]]:
    function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
    call = {"id": f"call-{city}", "type": "function", "function": function}
    return [_question(f"What is the weather in {city}?"), {"role": "assistant", "content": None, "tool_calls": [call]}]


def _question(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}
