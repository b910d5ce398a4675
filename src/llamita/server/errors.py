"""Errors of the APIs, in the form that the clients of each route read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llamita.errors import clean_line

_TYPES: Final = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}


_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """A request that fails: its HTTP status, and what the client may know."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def body(self, path: str = "") -> dict[str, Any]:
        """As the clients of this path read it: Ollama's under /api, Anthropic's of its messages, else
        OpenAI's."""
        message = clean_line(str(self))
        if path.startswith("/api/"):
            return {"error": message}
        if path.startswith("/v1/messages"):
            kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": message}}
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}
