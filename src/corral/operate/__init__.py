"""The commands that talk to a running Corral: how its models stand, and what is to become of them."""

from corral.operate.commands import models_app, reload, status

__all__ = ["models_app", "reload", "status"]
