"""The time limits of attempts, by route."""

from pydantic import Field

from corral.config.kinds import PositiveDuration, Section
from corral.core.call import Endpoint


class RouteTimeouts(Section, frozen=True):
    """Limits to the phases of an attempt at an upstream; exceeding one is a 504 that names it."""

    connect_s: PositiveDuration = Field(default=5.0, description="To connect to the upstream.")
    first_byte_s: PositiveDuration = Field(
        default=300.0,
        description="The longest silence before the first token; progress in reading the prompt ends a silence.",
    )
    between_tokens_s: PositiveDuration = Field(default=60.0, description="Between two tokens of a reply.")
    total_s: PositiveDuration = Field(default=3600.0, description="For the whole reply.")


class TimeoutSettings(Section, frozen=True):
    """Time limits per route."""

    chat: RouteTimeouts = RouteTimeouts()
    completions: RouteTimeouts = RouteTimeouts()
    embeddings: RouteTimeouts = RouteTimeouts(first_byte_s=120.0, total_s=600.0)

    def of(self, endpoint: Endpoint) -> RouteTimeouts:
        match endpoint:
            case Endpoint.CHAT:
                return self.chat
            case Endpoint.COMPLETIONS:
                return self.completions
            case Endpoint.EMBEDDINGS:
                return self.embeddings
