"""Which models there are: by flag, environment or corral.yaml, in this order."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from corral.config import gguf, values
from corral.config.describe import model_fields, remote_fields, written
from corral.config.model_settings import ModelSettings
from corral.config.names import BASE_URL, MODEL_FLAG, MODEL_UPSTREAMS, MODELS
from corral.config.problems import Given, Layer, Mistake, Problems, did_you_mean, shown
from corral.config.report import report
from corral.config.settings import DEFAULT_MODEL, DEFAULT_URL
from corral.config.yaml_file import UPSTREAM

UPSTREAMS = "upstreams"
REMOTE = "remote"

NOTHING_NAMED = (ModelSettings(name=DEFAULT_MODEL, upstreams=(DEFAULT_URL,)),)

RIGHT_UPSTREAM = "llama-8b=http://127.0.0.1:8081"

# The fields of a model, the source of the model, and in corral.yaml the source of each field.
Draft = tuple[dict[str, object], Given, Layer | None]


def read_models(layer: Layer, problems: Problems) -> tuple[tuple[ModelSettings, ...], bool]:
    """The models of the strongest source that names any, and whether any name may be asked for by default.

    A source replaces the models of a weaker one as a whole. Names are strict where the
    operator gave them; one llama-server or one file answers to every name, as llama-server does.
    When nothing names a model, or what names them is wrong, it is the llama-server at the default address.
    """
    if given := layer.get(MODEL_FLAG):
        found = _from_flags(given, problems)
        any_model = len(found) == 1
    elif given := layer.get(MODEL_UPSTREAMS):
        found, any_model = _from_pairs(given, problems), False
    elif given := layer.get(BASE_URL):
        fields: dict[str, object] = {"name": DEFAULT_MODEL, UPSTREAMS: (str(given.value),)}
        found, any_model = _checked([(fields, given, None)], problems), True
    elif given := layer.get(MODELS):
        found, any_model = _from_entries(given, problems), False
    else:
        found = ()
    return (found, any_model) if found else (NOTHING_NAMED, True)


def _from_flags(given: Given, problems: Problems) -> tuple[ModelSettings, ...]:
    """``--model FILE`` or ``--model NAME=FILE``; a file that exists under the whole text is meant as such."""
    arguments = given.value if isinstance(given.value, (tuple, list)) else (given.value,)
    drafts: list[Draft] = []
    for argument in map(str, arguments):
        name, separator, file = argument.partition("=")
        if not separator or Path(argument).expanduser().exists():
            name, file = gguf.name_of(Path(argument)), argument
        drafts.append(({"name": name, "file": file}, replace(given, part=argument), None))
    return _checked(drafts, problems)


def _from_pairs(given: Given, problems: Problems) -> tuple[ModelSettings, ...]:
    drafts: list[Draft] = []
    for number, text in enumerate(str(given.value).split(","), start=1):
        entry = replace(given, part=f"entry {number}")
        try:
            name, url = values.pair(text, right=RIGHT_UPSTREAM)
        except Mistake as mistake:
            problems.add(entry, mistake.wrong, str(mistake.right))
            continue
        drafts.append(({"name": name, UPSTREAMS: (url,)}, entry, None))
    return _checked(drafts, problems)


def _from_entries(given: Given, problems: Problems) -> tuple[ModelSettings, ...]:
    entries: Sequence[Given] = given.value if isinstance(given.value, tuple) else ()
    drafts: list[Draft] = []
    for entry in entries:
        sources: dict[str, Given] = entry.value if isinstance(entry.value, dict) else {}
        fields = {
            model_fields()[name].attributes[0]: field.value for name, field in sources.items() if name != UPSTREAM
        }
        if UPSTREAM in sources and UPSTREAMS in sources:
            problems.add(sources[UPSTREAM], "the model has upstreams too", "write one of them")
        elif UPSTREAM in sources:
            fields[UPSTREAMS] = (sources[UPSTREAM].value,)
        if "name" not in fields and isinstance(fields.get("file"), str):
            fields["name"] = gguf.name_of(Path(str(fields["file"])))
        elif "name" not in fields and isinstance(fields.get("hf"), str):
            fields["name"] = gguf.name_of(Path(str(fields["hf"]).partition(":")[0]))
        drafts.append((fields, entry, sources))
    return _checked(drafts, problems)


def _checked(drafts: Sequence[Draft], problems: Problems) -> tuple[ModelSettings, ...]:
    found: list[tuple[ModelSettings, Draft]] = []
    names: set[str] = set()
    for draft in drafts:
        fields, given, sources = draft
        name = str(fields.get("name", "")).strip()
        if name and name in names:
            problems.add(given, f"two models have the name {shown(name)}", "give each model a name of its own")
        names.add(name)
        model = _validated(fields, given, sources, problems)
        if model is not None:
            _check_file(model, _source("file", given, sources), problems)
            found.append((model, draft))
    for model, (_, given, sources) in found:
        _check_aliases(model, names, _source("aliases", given, sources), problems)
    for model, (_, given, sources) in found:
        _check_fallback(model, names, _source("fallback", given, sources), problems)
    return tuple(model for model, _ in found)


def _check_aliases(model: ModelSettings, names: set[str], given: Given, problems: Problems) -> None:
    """Adds the aliases to the names that are taken."""
    for alias in model.aliases:
        if alias in names:
            problems.add(given, f"the name {shown(alias)} is taken", "give each model names of its own")
        names.add(alias)


def _check_fallback(model: ModelSettings, names: set[str], given: Given, problems: Problems) -> None:
    if model.fallback is not None and (model.fallback not in names or model.fallback in (model.name, *model.aliases)):
        others = ", ".join(sorted(names - {model.name, *model.aliases}))
        problems.add(given, f"{shown(model.fallback)} is no other model", f"write one of: {others}")


def _validated(
    fields: dict[str, object], given: Given, sources: Layer | None, problems: Problems
) -> ModelSettings | None:
    try:
        return ModelSettings.model_validate(fields)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    for detail in errors:
        field = written(str(detail["loc"][0])) if detail["loc"] else ""
        source = _source(field, given, sources)
        if field == REMOTE and len(detail["loc"]) > 1:
            _report_within(detail, source, problems)
            continue
        example = model_fields()[field].example if field else ""
        report(detail, source, problems, example=example)
    return None


def _report_within(detail: ErrorDetails, given: Given, problems: Problems) -> None:
    """Report what is wrong in an entry of the remote replicas, which have settings of their own."""
    number = detail["loc"][1]
    place = replace(given, part=f"entry {number + 1}" if isinstance(number, int) else "")
    field = written(str(detail["loc"][2])) if len(detail["loc"]) > 2 else ""
    if detail["type"] == "extra_forbidden":
        problems.add(place, f"there is no setting {shown(field)} here", did_you_mean(field, remote_fields()))
        return
    inner = replace(place, name=f"{given.name}.{field}" if field else given.name, value=detail["input"])
    report(detail, inner, problems, example=remote_fields()[field or "url"].example)


def _source(field: str, given: Given, sources: Layer | None) -> Given:
    """Where a field of a model came from; in corral.yaml that is its own line, unless it is missing there."""
    if sources is None or not field:
        return given
    if field == UPSTREAMS and UPSTREAM in sources:
        return sources[UPSTREAM]
    return sources.get(field) or replace(given, name=f"{given.name}.{field}")


def _check_file(model: ModelSettings, given: Given, problems: Problems) -> None:
    """The file of a model that Corral starts must be there; the upstreams' files are the launchers' matter."""
    if model.file is None:
        return
    try:
        gguf.check(model.file)
    except Mistake as mistake:
        problems.add(given, mistake.wrong, str(mistake.right))
