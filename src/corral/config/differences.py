"""What of a new configuration a running Corral cannot take over."""

from corral.config.describe import by_path
from corral.config.settings import Config

# The listener, the log, the store and the way to Valkey are set up once.
FIXED = ("server", "logs", "store", "usage", "valkey")


def fixed_differences(old: Config, new: Config) -> tuple[str, ...]:
    """The settings that differ and count from the next start on."""
    return tuple(
        setting.path
        for setting in by_path().values()
        if setting.attributes[0] in FIXED and _value(old, setting.attributes) != _value(new, setting.attributes)
    )


def with_fixed_of(new: Config, old: Config) -> Config:
    """The new configuration as it is in force: with the old one's settings where those are fixed."""
    return new.model_copy(update={section: getattr(old, section) for section in FIXED})


def _value(config: Config, attributes: tuple[str, ...]) -> object:
    value: object = config
    for name in attributes:
        value = getattr(value, name)
    return value
