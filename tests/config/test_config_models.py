"""Which models there are, and whether any name is served."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from corral.config import Config, ModelSettings

Refused = Callable[..., list[str]]
Configured = Callable[..., Config]
Make = Callable[[str], Path]

A, B = "http://127.0.0.1:8081", "http://127.0.0.1:8082"


def named(config: Config) -> dict[str, tuple[str, ...]]:
    return {model.name: model.upstreams for model in config.models}


def test_when_nothing_names_a_model_llama_server_serves_any_name(configured: Configured) -> None:
    config = configured()
    assert named(config) == {"llama": ("http://127.0.0.1:8080",)}
    assert config.any_model
    assert config == Config()


def test_a_base_url_serves_any_name(configured: Configured) -> None:
    config = configured(env={"LLAMA_BASE_URL": f"{A}/"})
    assert (named(config), config.any_model) == ({"llama": (A,)}, True)


@pytest.mark.parametrize(
    ("pairs", "meant"), [(f"a={A}", {"a": (A,)}), (f"a={A}, b = {B}/x/", {"a": (A,), "b": (f"{B}/x",)})]
)
def test_model_upstreams_are_strict_also_with_one(
    configured: Configured, pairs: str, meant: dict[str, tuple[str, ...]]
) -> None:
    config = configured(env={"MODEL_UPSTREAMS": pairs})
    assert (named(config), config.any_model) == (meant, False)


def test_models_in_the_file_are_strict_and_have_more_settings(configured: Configured, gguf_file: Make) -> None:
    file = gguf_file("Big.gguf")
    yaml = (
        "models:\n- {name: a, upstream: 'http://127.0.0.1:8081', allow_fields: [id_slot], default_max_tokens: 5}\n"
        "- name: b\n  upstreams: ['http://127.0.0.1:8081', 'http://127.0.0.1:8082']\n"
        f"- file: {file}\n- {{name: c, file: {file}}}\n"
    )
    config = configured(yaml)
    assert config.models == (
        ModelSettings(name="a", upstreams=(A,), allow_fields=("id_slot",), default_max_tokens=5),
        ModelSettings(name="b", upstreams=(A, B)),
        ModelSettings(name="big", file=file),
        ModelSettings(name="c", file=file),
    )
    assert not config.any_model


def test_one_model_flag_serves_any_name_and_several_do_not(configured: Configured, gguf_file: Make) -> None:
    one, two = str(gguf_file("One-Q4.gguf")), str(gguf_file("two.gguf"))
    single = configured(flags={"models": (one,)})
    assert ([model.name for model in single.models], single.any_model) == (["one-q4"], True)
    both = configured(flags={"models": (one, f"other={two}")})
    assert ([(m.name, m.file) for m in both.models], both.any_model) == (
        [("one-q4", Path(one)), ("other", Path(two))],
        False,
    )


def test_a_model_flag_may_name_a_file_with_an_equals_sign(configured: Configured, gguf_file: Make) -> None:
    gguf_file("a=b.gguf")
    (model,) = configured(flags={"models": ("a=b.gguf",)}).models
    assert (model.name, model.file) == ("a-b", Path("a=b.gguf"))


def test_the_strongest_source_names_all_models(configured: Configured, gguf_file: Make) -> None:
    gguf_file("x.gguf")
    yaml, base, pairs = "models: [{name: y, upstream: 'http://y'}]", {"LLAMA_BASE_URL": A}, f"a={A}"
    assert list(named(configured(yaml))) == ["y"]
    assert list(named(configured(yaml, env=base))) == ["llama"]
    assert list(named(configured(yaml, dotenv=f"MODEL_UPSTREAMS={pairs}", env=base))) == ["a"]
    assert list(named(configured(yaml, env={"MODEL_UPSTREAMS": pairs}, flags={"models": ["x.gguf"]}))) == ["x"]


@pytest.mark.parametrize("flags", [{"models": ()}, {"models": None}, {"models": []}])
def test_no_model_flag_leaves_the_weaker_sources_alone(configured: Configured, flags: dict[str, object]) -> None:
    assert list(named(configured(env={"MODEL_UPSTREAMS": f"a={A}"}, flags=flags))) == ["a"]


def test_any_model_can_be_said_outright(configured: Configured) -> None:
    assert configured("any_model: true", env={"MODEL_UPSTREAMS": f"a={A}"}).any_model
    assert not configured("any_model: false", env={"LLAMA_BASE_URL": A}).any_model


def test_any_model_needs_a_single_model(refused: Refused) -> None:
    assert refused(env={"CORRAL_ANY_MODEL": "1", "MODEL_UPSTREAMS": f"a={A},b={B}"}) == [
        "CORRAL_ANY_MODEL (environment): there are 2 models to choose from; name one model, or write false"
    ]


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        (f"a={A},b", "(environment, entry 2): is not a pair NAME=VALUE"),
        (f"a={A},,b={B}", "(environment, entry 2): is not a pair NAME=VALUE"),
        (f"a={A},a={B}", "(environment, entry 2): two models have the name 'a'"),
        ("a=127.0.0.1:80", "(environment, entry 1): '127.0.0.1:80' does not begin with http:// or https://"),
        ("a=http://u:canary@h", "(environment, entry 1): the URL holds a user name or password"),
        (f"http://u:canary@h={A}", "(environment, entry 1): the value is not a model name"),
        (f"a b={A}", "(environment, entry 1): 'a b' is not a model name"),
    ],
)
def test_a_bad_entry_of_model_upstreams_is_refused(refused: Refused, pairs: str, problem: str) -> None:
    problems = refused(env={"MODEL_UPSTREAMS": pairs})
    assert problems[0].startswith(f"MODEL_UPSTREAMS {problem}; ")
    assert "canary" not in "\n".join(problems)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{upstream: 'http://a'}", "models[0].name (corral.yaml line 1): is not given; write e.g. name: llama-8b"),
        ("{}", "models[0].name (corral.yaml line 1): is not given; write e.g. name: llama-8b"),
        ("{name: a}", "models[0] (corral.yaml line 1): the model has none of upstream, upstreams, remote, "),
        ("{name: a, upstreams: ['http://b'], remote: 'http://c'}",
         "models[0] (corral.yaml line 1): the model has upstreams and remote; write one of them"),
        ("{name: a, upstream: 'http://a', upstreams: ['http://b']}", "models[0].upstream (corral.yaml line 1): the m"),
        ("{name: a, upstreams: ['http://b', 'http://b/']}", "models[0] (corral.yaml line 1): the model names an"),
        ("{name: a, upstream: 5}", "models[0].upstream (corral.yaml line 1): 5 is not text"),
        ("{name: 5, upstream: 'http://a'}", "models[0].name (corral.yaml line 1): 5 is not text; write e.g. name: "),
        ("{name: a, file: nowhere.gguf}", "models[0].file (corral.yaml line 1): there is no file nowhere.gguf; "),
        ("{name: a, url: 'http://a'}", "models[0].url (corral.yaml line 1): models have no such setting; "),
        ("{name: a, upstrem: 'http://a'}",
         "models[0].upstrem (corral.yaml line 1): models have no such setting; did you mean upstream?"),
        ("a", "models[0] (corral.yaml line 1): is not a group of settings"),
    ],
)  # fmt: skip
def test_a_bad_model_in_the_file_is_refused(refused: Refused, entry: str, problem: str) -> None:
    assert refused(yaml=f"models: [{entry}]")[0].startswith(problem)


@pytest.mark.parametrize("content", ["models: []", "models: {a: b}", "models: a"])
def test_models_are_a_list_with_an_entry(refused: Refused, content: str) -> None:
    assert refused(yaml=content)[0].startswith("models (corral.yaml line 1): is not a list of models; ")


def test_a_missing_file_of_a_model_flag_is_refused(refused: Refused) -> None:
    (problem,) = refused(flags={"models": ("a=nowhere.gguf",)})
    assert problem.startswith("--model (flag, a=nowhere.gguf): there is no file nowhere.gguf; ")


def test_a_bad_base_url_is_refused(refused: Refused) -> None:
    (problem,) = refused(env={"LLAMA_BASE_URL": "http://127.0.0.1/v1"})
    wrong = "'http://127.0.0.1/v1' ends in /v1, which Corral adds itself; leave /v1 out"
    assert problem == f"LLAMA_BASE_URL (environment): {wrong}"


def test_settings_hold_their_rules_without_the_loader() -> None:
    with pytest.raises(ValidationError):
        ModelSettings(name="a")
    with pytest.raises(ValidationError):
        Config(models=(), any_model=True)


REMOTES = "models: [{name: a, remote: [%s]}]"


def test_remote_replicas_are_urls_or_have_weights_and_keys_of_their_own(configured: Configured, here: Path) -> None:
    (here / "upstream.key").write_text("geheim\n")
    (model,) = configured(REMOTES % f"'{A}', {{url: '{B}/', weight: 2.5, key_file: upstream.key}}").models
    first, second = model.remotes
    assert (first.url, first.weight, first.key_file) == (A, 1.0, None)
    assert second.key_file is not None
    assert (second.url, second.weight, second.key_file.get_secret_value()) == (B, 2.5, "geheim")
    assert "geheim" not in repr(model)


def test_upstreams_are_remote_replicas_too() -> None:
    assert [remote.url for remote in ModelSettings(name="a", upstreams=(A, B)).remotes] == [A, B]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{url: 5}", "(corral.yaml line 1, entry 1): 5 is not a URL"),
        ("{weight: 2}", "(corral.yaml line 1, entry 1): is not given; write e.g. url: http://10.0.0.5:8080"),
        ("'http://a', {url: 'http://b', weight: 0}", "(corral.yaml line 1, entry 2): 0 is not more than 0"),
        (
            "{url: 'http://a', wieght: 2}",
            "(corral.yaml line 1, entry 1): there is no setting 'wieght' here; did",
        ),
        ("{url: 'http://a', key_file: away}", "(corral.yaml line 1, entry 1): away cannot be read; give a file"),
        ("5", "(corral.yaml line 1, entry 1): "),
    ],
)
def test_a_bad_remote_replica_is_refused(refused: Refused, entry: str, problem: str) -> None:
    (found,) = refused(yaml=REMOTES % entry)
    assert found.startswith("models[0].remote")
    assert problem in found


STARTED = "models: [{name: a, file: x.gguf, aliases: [b, c], %s}, {name: d, upstream: 'http://d'}]"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("idle_ttl: 5m", "models[0].idle_ttl (corral.yaml line 1): the model would not be started again; "),
        ("preload: false", "models[0].preload (corral.yaml line 1): nothing would ever start the model; "),
        ("idle_ttl: 5x", "models[0].idle_ttl (corral.yaml line 1): '5x' is not a duration"),
        ("replicas: 0", "models[0].replicas (corral.yaml line 1): 0 is less than 1"),
        ("fallback: a", "models[0].fallback (corral.yaml line 1): 'a' is no other model; "),
        ("fallback: c", "models[0].fallback (corral.yaml line 1): 'c' is no other model; "),
        ("fallback: e", "models[0].fallback (corral.yaml line 1): 'e' is no other model; write one of: d"),
        ("aliases: [d]", "models[0].aliases (corral.yaml line 1): "),
        ("defaults: 5", "models[0].defaults (corral.yaml line 1): 5 is not a group of request fields; "),
        ("defaults: {temperature: hot}", "models[0].defaults (corral.yaml line 1): "),
        ("overrides: {max_tokens: 5}", "models[0].overrides (corral.yaml line 1): max_tokens is Corral's own"),
        ("overrides: {x: 2020-01-01}", "models[0].overrides (corral.yaml line 1): "),
        ("strip: [messages]", "models[0].strip (corral.yaml line 1): messages is Corral's own"),
    ],
)  # fmt: skip
def test_a_bad_setting_of_a_model_is_refused(refused: Refused, gguf_file: Make, fields: str, problem: str) -> None:
    gguf_file("x.gguf")
    text = (STARTED % fields).replace("aliases: [b, c], aliases", "aliases")
    assert refused(yaml=text)[0].startswith(problem)


def test_what_only_a_started_model_can_have_is_refused_elsewhere(refused: Refused) -> None:
    (problem,) = refused(yaml="models: [{name: a, upstream: 'http://a', idle_ttl: 5m}]")
    assert "idle_ttl is for models that Corral starts" in problem


def test_a_model_of_the_file_has_what_it_says(configured: Configured, gguf_file: Make) -> None:
    gguf_file("x.gguf")
    fields = (
        "on_demand: 1, idle_ttl: 5m, defaults: {temperature: 0.5}, overrides: {top_k: 3}, strip: [seed], fallback: d"
    )
    model = configured(STARTED % fields).models[0]
    assert (model.on_demand, model.idle_ttl_s, model.fallback, model.aliases) == (True, 300.0, "d", ("b", "c"))
    assert (model.defaults, model.overrides, model.strip) == ({"temperature": 0.5}, {"top_k": 3}, ("seed",))


def test_models_of_the_environment_can_be_loaded_on_demand(configured: Configured, gguf_file: Make) -> None:
    file = str(gguf_file("x.gguf"))
    config = configured(
        flags={"models": (file,)}, env={"CORRAL_FLEET_ON_DEMAND": "1", "CORRAL_FLEET_MEMORY_SIZE": "2GiB"}
    )
    assert (config.fleet.on_demand, config.fleet.memory_bytes) == (True, 2 * 2**30)
