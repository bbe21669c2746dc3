"""What each model lets a request say, by the settings."""

from corral.config import Config, ModelSettings
from corral.openai.policy import Parameters, Policy


class Policies:
    """The policies by model name and alias; fixed once built."""

    def __init__(self, config: Config) -> None:
        self._of: dict[str, Policy] = {}
        for model in config.models:
            policy = _policy(config, model)
            self._of |= dict.fromkeys((model.name, *model.aliases), policy)
        self._default = next(iter(self._of.values()))

    def of(self, model: str) -> Policy:
        """The policy of a model; of the first for a name there is not, which is refused later or means the only one."""
        return self._of.get(model, self._default)


def _policy(config: Config, model: ModelSettings) -> Policy:
    return Policy(
        default_max_tokens=model.default_max_tokens or config.requests.default_max_tokens,
        allow_fields=frozenset(model.allow_fields),
        remote_images=config.requests.remote_images,
        max_inputs=config.requests.max_inputs,
        max_depth=config.requests.max_depth,
        parameters=_parameters(model),
    )


def _parameters(model: ModelSettings) -> Parameters | None:
    if not (model.defaults or model.overrides or model.strip):
        return None
    return Parameters(model.defaults, model.overrides, frozenset(model.strip))
