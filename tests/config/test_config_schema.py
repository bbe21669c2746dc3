"""The JSON schema takes what Corral takes, as far as one file can show it, and refuses what nobody can mean."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from corral.config import Config, settings_schema, settings_table
from support.commands import succeed

Configured = Callable[..., Config]
Refused = Callable[..., list[str]]

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "corral.schema.json"
HINT = "# yaml-language-server: $schema="

SCHEMA = settings_schema()
VALIDATOR = Draft202012Validator(SCHEMA)

SOUND = [
    "",
    "server:",
    "server: {host: null, port: 0, cors_origins: 'https://a.example, https://b.example'}",
    "server: {grace: 0, keep_alive: 1.5, unready: 5 m, body_size: 8MiB, head_timeout: 500MS}",
    "llama: {log_dir: null, extra_args: [--flash-attn, 'on'], model_paths: {a: ./a.gguf}, embeddings: 1}",
    "queue: {weights: {a: 2, b: 0.5}, interactive: a, batch: [b, c]}",
    "models: [{name: a, upstream: 'http://127.0.0.1:1'}]",
    "models: [{name: a, upstream: 'http://127.0.0.1:1', file: null}]",
    "models: [{name: a, upstreams: ['http://127.0.0.1:1', 'http://127.0.0.1:2']}]",
    "models: [{name: a, remote: 'http://127.0.0.1:1'}]",
    "models: [{name: a, remote: ['http://127.0.0.1:1', {url: 'http://127.0.0.1:2', weight: 2}]}]",
    "models: [{file: model.gguf, remote: 'http://127.0.0.1:1'}]",
    "models: [{hf: 'org/repo:Q4_K_M', replicas: 2}]",
    "models: [{file: model.gguf, memory_size: 6GiB, defaults: {temperature: 0.2}, strip: [seed]}]",
    "models: [{file: model.gguf, on_demand: true, idle_ttl: 15m, replicas: 2}]",
]
# Each with a word of the place that the schema complains about.
WRONG = [
    ("sever: {port: 1}", "sever"),
    ("server: {prot: 1}", "prot"),
    ("server: {keep_alive_s: 1}", "keep_alive_s"),
    ("server: 8000", "server"),
    ("server: {port: eight}", "port"),
    ("server: {port: 65536}", "port"),
    ("server: {port: -1}", "port"),
    ("server: {grace: soon}", "grace"),
    ("server: {grace: -1s}", "grace"),
    ("server: {keep_alive: 0}", "keep_alive"),
    ("server: {body_size: 8 sheep}", "body_size"),
    ("server: {body_size: 1.5}", "body_size"),
    ("auth: {allow_anonymous: maybe}", "allow_anonymous"),
    ("auth: {keys: [k]}", "keys"),
    ("llama: {api_key: k}", "api_key"),
    ("llama: {parallel: 0}", "parallel"),
    ("logs: {level: loud}", "level"),
    ("routing: {balance: luck}", "balance"),
    ("timeouts: {chat: {total: {seconds: 1}}}", "total"),
    ("queue: {weights: {a: heavy}}", "weights"),
    ("models: []", "models"),
    ("models: {name: a}", "models"),
    ("models: [{name: a}]", "models"),
    ("models: [{upstream: 'http://127.0.0.1:1'}]", "models"),
    ("models: [{name: a, upstream: 'http://127.0.0.1:1', remote: 'http://127.0.0.1:2'}]", "models"),
    ("models: [{name: a, file: model.gguf, hf: org/repo}]", "models"),
    ("models: [{name: '-', upstream: 'http://127.0.0.1:1'}]", "name"),
    ("models: [{name: a, upstream: '127.0.0.1:1'}]", "upstream"),
    ("models: [{name: a, upstreams: ['127.0.0.1:1']}]", "upstreams"),
    ("models: [{name: a, upstream: 'http://127.0.0.1:1', idle_ttl_s: 1}]", "idle_ttl_s"),
    ("models: [{file: model.gguf, replicas: 65}]", "replicas"),
    ("models: [{file: model.gguf, memory_size: lots}]", "memory_size"),
    ("models: [{file: model.gguf, defaults: hot}]", "defaults"),
    ("models: [{name: a, remote: {weight: 2}}]", "remote"),
    ("models: [{name: a, remote: {url: 'http://127.0.0.1:1', key: k}}]", "remote"),
]


@pytest.fixture
def configured_with_model(configured: Configured, gguf_file: Callable[[str], Path]) -> Configured:
    """``configured``, with a file of a model that settings may name."""
    gguf_file("model.gguf")
    return configured


def complaints(text: str) -> list[str]:
    """Where the schema finds something wrong, and what."""
    found = VALIDATOR.iter_errors(yaml.safe_load(text))
    return [f"{each.json_path}: {each.message}" for each in found]


def properties(schema: dict[str, Any], above: str = "") -> dict[str, dict[str, Any]]:
    """All settings by their paths, those of entries with ``[]`` as the table has them."""
    found: dict[str, dict[str, Any]] = {}
    for name, each in schema.get("properties", {}).items():
        path = f"{above}{name}"
        found |= {path: each} | properties(each, f"{path}.")
        entries = [each.get("items", {}), *each.get("anyOf", ())]
        for entry in entries:
            found |= properties(entry, f"{path}[].")
    return found


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == Draft202012Validator.META_SCHEMA["$schema"]


def test_it_has_every_setting_of_the_table_by_the_name_in_files_and_no_secret() -> None:
    found = properties(SCHEMA)
    expected = {each.path: each for each in settings_table() if not each.secret and not each.path.startswith("--")}
    sections = {path for path, each in found.items() if "properties" in each}
    assert set(found) - sections == {*expected, "models[].upstream"}
    for path, setting in expected.items():
        if path == "models":
            continue
        assert found[path]["description"] == setting.description, path
        default = found[path].get("default")
        spelled = default if isinstance(default, str) else json.dumps(default)
        assert spelled == setting.default.replace("required", "null").replace("not set", "null"), path


def test_what_stands_as_default_is_allowed() -> None:
    for path, each in properties(SCHEMA).items():
        if "default" in each:
            assert Draft202012Validator(each).is_valid(each["default"]), path


def test_the_published_copy_is_what_the_command_prints(tmp_path: Path) -> None:
    assert succeed(["corral", "schema"], tmp_path) == PUBLISHED.read_text()
    assert json.loads(PUBLISHED.read_text()) == SCHEMA


def test_the_example_with_everything_switched_on_is_sound() -> None:
    text = re.sub(r"^#(?! \S)", "", (ROOT / "examples" / "corral.yaml").read_text(), flags=re.MULTILINE)
    assert yaml.safe_load(text).keys() == SCHEMA["properties"].keys()
    assert complaints(text) == []


def test_the_manuals_yaml_is_sound() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "configuration.md").read_text(), re.DOTALL)
    assert blocks
    assert [complaint for block in blocks for complaint in complaints(block)] == []


def test_the_example_tells_editors_of_the_schema() -> None:
    first = (ROOT / "examples" / "corral.yaml").read_text().splitlines()[0]
    assert first.startswith(HINT)
    assert (ROOT / "examples" / first.removeprefix(HINT)).resolve() == PUBLISHED


@pytest.mark.parametrize("text", SOUND)
def test_what_corral_takes_is_sound(configured_with_model: Configured, text: str) -> None:
    configured_with_model(text)
    assert complaints(text or "{}") == []


@pytest.mark.parametrize(("text", "place"), WRONG)
def test_wrong_names_and_values_are_not(
    refused: Refused, gguf_file: Callable[[str], Path], text: str, place: str
) -> None:
    gguf_file("model.gguf")
    refused(yaml=text)
    found = complaints(text)
    assert found
    assert place in " ".join(found)
