"""The settings, frozen, from corral.yaml, .env, the environment and flags."""

from corral.config.clients import unknown_clients
from corral.config.describe import Setting, settings_table
from corral.config.files import Files
from corral.config.keys import ApiKey, key_digest
from corral.config.launch import Launch, launch_plan
from corral.config.load import load, load_store
from corral.config.model_settings import ModelSettings, RemoteSettings
from corral.config.schema import settings_schema
from corral.config.settings import (
    AuthSettings,
    Config,
    FleetSettings,
    LlamaSettings,
    LogSettings,
    QueueSettings,
    RequestSettings,
    RetrySettings,
    RoutingSettings,
    ServerSettings,
)
from corral.config.tenancy_settings import LimitSettings, StoreSettings, UsageSettings, ValkeySettings
from corral.config.time_settings import RouteTimeouts, TimeoutSettings
from corral.config.urls import is_loopback

__all__ = [
    "ApiKey",
    "AuthSettings",
    "Config",
    "Files",
    "FleetSettings",
    "Launch",
    "LimitSettings",
    "LlamaSettings",
    "LogSettings",
    "ModelSettings",
    "QueueSettings",
    "RemoteSettings",
    "RequestSettings",
    "RetrySettings",
    "RouteTimeouts",
    "RoutingSettings",
    "ServerSettings",
    "Setting",
    "StoreSettings",
    "TimeoutSettings",
    "UsageSettings",
    "ValkeySettings",
    "is_loopback",
    "key_digest",
    "launch_plan",
    "load",
    "load_store",
    "settings_schema",
    "settings_table",
    "unknown_clients",
]
