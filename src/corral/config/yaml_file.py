"""Reads corral.yaml: every value with its line, unknown and repeated keys refused by name."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from corral.config.describe import by_path, model_fields, sections
from corral.config.names import KEYS, MODELS, STORE_URL, UPSTREAM_KEY, VALKEY_URL
from corral.config.problems import Given, Problems, did_you_mean

# Where secrets belong instead.
SECRETS = {
    KEYS: "set OPENAI_API_KEYS or OPENAI_API_KEYS_FILE in the environment or .env",
    UPSTREAM_KEY: "set LLAMA_API_KEY in the environment or .env",
    STORE_URL: "set CORRAL_STORE_URL in the environment or .env",
    VALKEY_URL: "set CORRAL_VALKEY_URL in the environment or .env",
}
# One upstream needs no list.
UPSTREAM = "upstream"


def read_yaml(file: Path, content: str, problems: Problems) -> dict[str, Given]:
    """The settings by path; ``models`` holds one ``Given`` per entry, whose value holds its fields by name."""
    return _Reader(file, problems).read(content)


class _Reader:
    """One pass over one file; writes the layer and the problems."""

    def __init__(self, file: Path, problems: Problems) -> None:
        self.file = file
        self.problems = problems
        self.layer: dict[str, Given] = {}

    def read(self, content: str) -> dict[str, Given]:
        # PyYAML's own texts quote the file, which may hold a secret: only the position is told.
        loader = None
        try:
            loader = yaml.SafeLoader(content)
            root = loader.get_single_node()
            if root is not None and not _is_null(root):
                self._section(loader, root, "")
        except yaml.MarkedYAMLError as error:
            self._syntax(error.problem_mark or error.context_mark)
        except yaml.YAMLError:
            self._syntax(None)
        finally:
            if loader is not None:
                loader.dispose()
        return self.layer

    def _section(self, loader: yaml.SafeLoader, node: Node, above: str) -> None:
        for name, key, value in self._entries(node, above or str(self.file)):
            path = f"{above}.{name}" if above else name
            given = self._given(path, key, None)
            if path in sections():
                if not _is_null(value):
                    self._section(loader, value, path)
            elif path in SECRETS:
                self.problems.add(given, "secrets do not belong into this file", SECRETS[path])
            elif path == MODELS:
                self._models(loader, value, given)
            elif path in by_path():
                self._value(loader, value, given, self.layer, path)
            else:
                self.problems.add(given, "there is no such setting", did_you_mean(path, self._valid_paths()))

    def _models(self, loader: yaml.SafeLoader, node: Node, given: Given) -> None:
        if not isinstance(node, SequenceNode) or not node.value:
            self.problems.add(given, "is not a list of models", "write '- name: …' for each, or leave models out")
            return
        entries = [self._model(loader, entry, f"{MODELS}[{index}]") for index, entry in enumerate(node.value)]
        self.layer[MODELS] = Given(given.name, given.source, tuple(entries))

    def _model(self, loader: yaml.SafeLoader, node: Node, above: str) -> Given:
        fields: dict[str, Given] = {}
        for name, key, value in self._entries(node, above):
            given = self._given(f"{above}.{name}", key, None)
            if name in model_fields() or name == UPSTREAM:
                self._value(loader, value, given, fields, name)
            else:
                self.problems.add(given, "models have no such setting", did_you_mean(name, (*model_fields(), UPSTREAM)))
        return self._given(above, node, fields)

    def _value(self, loader: yaml.SafeLoader, node: Node, given: Given, into: dict[str, Given], name: str) -> None:
        """Keep what stands at ``node``; nothing, or null, counts as not given."""
        try:
            value = loader.construct_object(node, deep=True)
        # A date that is none, a number too large: PyYAML lets Python's own errors through.
        except (yaml.YAMLError, ValueError):
            self.problems.add(given, "the value cannot be read", "put it into quotes")
            return
        if value is not None:
            into[name] = Given(given.name, given.source, value)

    def _entries(self, node: Node, where: str) -> Iterator[tuple[str, Node, Node]]:
        if not isinstance(node, MappingNode):
            self.problems.add(self._given(where, node, None), "is not a group of settings", "write 'name: value' lines")
            return
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value) if isinstance(key, ScalarNode) else "?"
            if name in seen:
                given = self._given(f"{where}.{name}", key, None)
                self.problems.add(given, "stands there twice", "keep one of them")
            seen.add(name)
            yield name, key, value

    def _given(self, name: str, node: Node, value: object) -> Given:
        return Given(name, f"{self.file} line {node.start_mark.line + 1}", value)

    def _syntax(self, mark: yaml.Mark | None) -> None:
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        given = Given("corral.yaml", f"{self.file}{place}", None)
        self.problems.add(given, "this is not valid YAML", "look there for indentation, a missing colon or quote")

    def _valid_paths(self) -> tuple[str, ...]:
        return (*by_path(), *sections(), MODELS)


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == "tag:yaml.org,2002:null"
