"""The manual and the examples hold every setting, and work."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from corral.config import Config, Setting, settings_table

Configured = Callable[..., Config]

ROOT = Path(__file__).parents[2]
MANUAL = (ROOT / "docs" / "configuration.md").read_text()
DOTENV = (ROOT / ".env.example").read_text()
YAML = (ROOT / "examples" / "corral.yaml").read_text()

SETTINGS = settings_table()
IDS = [setting.path for setting in SETTINGS]
ENV_NAMES = [name for setting in SETTINGS for name in setting.env_names]

# Assignments that are switched off; text has a space after its sign.
SWITCHED_OFF = re.compile(r"^#([A-Z_]+)=(.*)$", re.MULTILINE)


def row(setting: Setting) -> str:
    """The line of the manual's table that tells of a setting."""
    names = ", ".join(f"`{name}`" for name in setting.env_names)
    default = setting.default if setting.default in ("not set", "required") else f"`{setting.default}`"
    return f"| `{setting.path}` | {names} | {default} | {setting.description} |"


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_every_setting_stands_in_the_manual_as_it_is(setting: Setting) -> None:
    assert setting.description
    assert row(setting) in MANUAL.splitlines()


def test_the_manual_tells_of_no_setting_that_is_gone() -> None:
    rows = [line for line in MANUAL.split("## All settings")[1].splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(map(row, SETTINGS))


@pytest.mark.parametrize("name", ENV_NAMES)
def test_every_name_stands_in_the_example_of_env(name: str) -> None:
    assert re.search(rf"^#?{name}=", DOTENV, re.MULTILINE)


def test_the_example_of_env_works_as_it_stands(configured: Configured) -> None:
    config = configured(dotenv=DOTENV)
    assert [key.client for key in config.auth.keys] == ["default"]
    assert config == configured(env={"OPENAI_API_KEY": "local"})
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(("name", "value"), SWITCHED_OFF.findall(DOTENV))
def test_every_line_of_the_example_of_env_can_be_switched_on(
    configured: Configured, here: Path, name: str, value: str
) -> None:
    # The files that lines name are the reader's to have.
    (here / "keys.txt").write_text("k1x:team_a")
    value = "sh" if name.endswith("SERVER_BIN") else value
    configured(dotenv=f"{name}={value}")


def switched_on(text: str) -> str:
    """The example with every setting: one space after the sign makes text, none or more a setting."""
    return re.sub(r"^#(?! \S)", "", text, flags=re.MULTILINE)


def test_the_example_of_corral_yaml_changes_nothing_as_it_stands(configured: Configured) -> None:
    assert configured(YAML) == configured()


def test_the_example_of_corral_yaml_holds_the_defaults(configured: Configured) -> None:
    assert configured(switched_on(YAML)) == configured()


def test_every_setting_stands_in_the_example_of_corral_yaml() -> None:
    expected = {s.path for s in SETTINGS if not s.secret and "[" not in s.path and not s.path.startswith("--")}
    assert expected - paths_in(switched_on(YAML)) == set()


def paths_in(text: str) -> set[str]:
    """The paths of all keys, by their indentation."""
    above: list[tuple[int, str]] = []
    paths = set()
    for match in re.finditer(r"^( *)([a-z_]+):", text, re.MULTILINE):
        indent = len(match[1])
        above = [*(entry for entry in above if entry[0] < indent), (indent, match[2])]
        paths.add(".".join(name for _, name in above))
    return paths


def test_no_line_of_the_manuals_examples_is_refused(configured: Configured) -> None:
    for block in re.findall(r"```env\n(.*?)```", MANUAL, re.DOTALL):
        configured(dotenv=block)


def test_the_manuals_yaml_is_accepted(configured: Configured, here: Path) -> None:
    (here / "models").mkdir()
    (here / "models" / "llama-8b.gguf").write_bytes(b"GGUF")
    blocks = re.findall(r"```yaml\n(.*?)```", MANUAL, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        configured(block)
