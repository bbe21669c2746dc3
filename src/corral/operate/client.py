"""Asks the operator's API of a running Corral; what goes wrong is told with what to do."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from corral.core.errors import OperateError

# Corral answers what does not have to wait at once; longer means that it hangs.
LOOK_S = 10.0
# Longer than any model takes to load; Corral itself gives up before.
ACT_S = 24 * 3600.0

# No proxy stands between an operator and a Corral.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@dataclass(frozen=True, slots=True)
class Operator:
    """One running Corral, and the key to it."""

    url: str
    key: str | None = field(repr=False)

    def models(self) -> dict[str, Any]:
        """How all models stand."""
        return self._ask("GET", "/admin/models", LOOK_S)

    def model(self, name: str) -> dict[str, Any]:
        """How one stands, with its log."""
        return self._ask("GET", f"/admin/models/{quote(name)}", LOOK_S)

    def act(self, name: str, action: str) -> dict[str, Any]:
        """Have it done, and wait for that; how the model stands then."""
        return self._ask("POST", f"/admin/models/{quote(name)}/{action}", ACT_S)

    def reload(self) -> dict[str, Any]:
        """Have the settings read anew; what that has changed."""
        return self._ask("POST", "/admin/reload", ACT_S)

    def _ask(self, method: str, path: str, limit_s: float) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            request = urllib.request.Request(self.url.rstrip("/") + path, method=method, headers=headers)  # noqa: S310  (the operator's own URL)
            with _open(request, timeout=limit_s) as reply:
                told: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                raise OperateError(self._refusal(error)) from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            why = getattr(error, "reason", None) or error
            right = "start it with 'corral serve', or say where it is with --url"
            raise OperateError(f"no Corral answers at {self.url} ({why}); {right}") from None
        except ValueError:
            raise OperateError(f"what answers at {self.url} is no Corral; say where it is with --url") from None
        return told

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        try:
            told = json.load(error)["error"]
            code, message = told["code"], str(told["message"])
        except (ValueError, KeyError, TypeError):
            return f"what answers at {self.url} is no Corral (status {error.code}); say where it is with --url"
        if code == "unknown_url":
            return "this Corral has no operator's API: start it with OPERATOR_API_KEY set to a key of your own"
        if error.code == 401:
            return f"{message}; set OPERATOR_API_KEY to the one that Corral was started with"
        return message
