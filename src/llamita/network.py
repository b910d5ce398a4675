"""What requests over HTTP share: a refusal of redirects, and why a connection failed."""

from __future__ import annotations

import urllib.request
from typing import Any


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects raise HTTPError."""

    def redirect_request(self, *_: Any) -> None:
        return None


def failure_reason(error: Exception) -> str:
    """Why a connection failed, in one line of at most 200 characters."""
    cause = getattr(error, "reason", error)
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(str(text).split())[:200]
