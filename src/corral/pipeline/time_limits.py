"""How long an attempt may take, by what is asked and of which model."""

from collections.abc import Iterable

from corral.config import ModelSettings, RouteTimeouts, TimeoutSettings
from corral.core.call import Endpoint

# What a model may say for itself.
OF_A_MODEL = ("first_byte_s", "between_tokens_s", "total_s")


class TimeLimits:
    """The limits of all models; fixed once built."""

    def __init__(self, timeouts: TimeoutSettings, models: Iterable[ModelSettings] = ()) -> None:
        self._routes = {each: timeouts.of(each) for each in Endpoint}
        self._of: dict[tuple[str, Endpoint], RouteTimeouts] = {}
        for model in models:
            told = {name: value for name in OF_A_MODEL if (value := getattr(model, name)) is not None}
            if told:
                self._of |= {(model.name, each): of.model_copy(update=told) for each, of in self._routes.items()}

    def of(self, model: str, endpoint: Endpoint) -> RouteTimeouts:
        """The limits of a model's own, or else those of the route."""
        own = self._of.get((model, endpoint)) if self._of else None
        return own or self._routes[endpoint]
