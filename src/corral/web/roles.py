"""Who may use which route: one table, and one guard in front of them all. What the table does not name stays shut."""

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from types import MappingProxyType

from fastapi import Request

from corral.core.call import PATHS
from corral.core.errors import Forbidden, StoreUnavailable, Unauthorized
from corral.core.principal import Principal, Scope
from corral.pipeline.authenticate import Keyring, ensure_scope

# What a reverse proxy adds: the request comes from farther away than its connection.
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class Role(Enum):
    """Who a route is for."""

    ANYBODY = "anybody"
    # The exchange asks for it itself, also where a request does not come by the application.
    INFERENCE = "inference"
    # Of models and of what itself has used.
    CLIENT = "client"
    # And anybody on this machine, where only this machine can come in.
    METRICS = "metrics"
    ADMIN = "admin"


ROLES: Mapping[tuple[str, str], Role] = MappingProxyType(
    {
        **{("POST", path): Role.INFERENCE for path in PATHS.values()},
        ("GET", "/v1/models"): Role.CLIENT,
        ("GET", "/v1/models/{model}"): Role.CLIENT,
        ("GET", "/health"): Role.ANYBODY,
        ("GET", "/health/live"): Role.ANYBODY,
        ("GET", "/metrics"): Role.METRICS,
        ("GET", "/admin/models"): Role.ADMIN,
        ("GET", "/admin/models/{model}"): Role.ADMIN,
        ("POST", "/admin/models/{model}/load"): Role.ADMIN,
        ("POST", "/admin/models/{model}/unload"): Role.ADMIN,
        ("POST", "/admin/models/{model}/restart"): Role.ADMIN,
        ("POST", "/admin/models/{model}/drain"): Role.ADMIN,
        ("POST", "/admin/models/{model}/pin"): Role.ADMIN,
        ("POST", "/admin/models/{model}/unpin"): Role.ADMIN,
        ("POST", "/admin/reload"): Role.ADMIN,
        ("GET", "/v1/usage"): Role.CLIENT,
        ("GET", "/admin/usage"): Role.ADMIN,
        ("GET", "/admin/keys"): Role.ADMIN,
        ("POST", "/admin/keys"): Role.ADMIN,
        ("GET", "/admin/keys/{key_id}"): Role.ADMIN,
        ("PATCH", "/admin/keys/{key_id}"): Role.ADMIN,
        ("POST", "/admin/keys/{key_id}/rotate"): Role.ADMIN,
        ("POST", "/admin/keys/{key_id}/revoke"): Role.ADMIN,
    }
)


def guard(keyring: Keyring, *, loopback: bool) -> Callable[[Request], Awaitable[None]]:
    """What every route of the application depends on; leaves the principal in ``request.state.principal``.

    ``loopback``: the listener can be reached from this machine only.
    """

    async def admit(request: Request) -> None:
        role = ROLES.get((request.method, request.scope["route"].path_format))
        if role in (Role.ANYBODY, Role.INFERENCE):
            return
        if role is Role.METRICS and loopback and not any(name in request.headers for name in FORWARDED):
            return
        request.state.principal = principal = keyring.authenticate(_headers(request))
        if not principal.operator:
            _ensure_open(role, principal, keyring)

    return admit


def is_operator(request: Request, keyring: Keyring) -> bool:
    """Whether a request that needs no key has an operator's."""
    try:
        return keyring.authenticate(_headers(request)).operator
    except (Unauthorized, StoreUnavailable):
        return False


def principal_of(request: Request) -> Principal:
    """Who asks, on a route that is not for anybody."""
    principal: Principal = request.state.principal
    return principal


def _headers(request: Request) -> list[tuple[bytes, bytes]]:
    return list(request.scope["headers"])


def _ensure_open(role: Role | None, principal: Principal, keyring: Keyring) -> None:
    """Raises Forbidden for a key that is not an operator's and does not open this."""
    if role is Role.CLIENT:
        ensure_scope(principal, Scope.INFERENCE)
    elif role is not Role.METRICS:
        raise Forbidden("this is for operators; use the operator's key")
    elif Scope.METRICS not in principal.scopes and (keyring.has(Scope.METRICS) or keyring.has(Scope.ADMIN)):
        # They name every client. Where nobody else may see them, any key will do.
        raise Forbidden("the metrics are for operators; use the operator's key")
