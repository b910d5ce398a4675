"""The chat page at /: one file of HTML, put together once, that asks nothing of other servers."""

from __future__ import annotations

import functools
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from llamita import web
from llamita.engine import version

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def show_page(request: Request) -> Response:
    """The page. Its policy runs only its own script, which may ask only this server."""
    body, policy = _page()
    return Response(body, headers={**_HEADERS, "Content-Security-Policy": policy}, media_type="text/html")


@functools.cache
def _page() -> tuple[bytes, str]:
    """The page and its Content-Security-Policy."""
    style, script = web.source("page.css") + web.source("chat.css"), web.source("chat.js")
    policy = (
        f"default-src 'none'; script-src {web.policy_hash(script)}; style-src {web.policy_hash(style)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    values = {"STYLE": style, "SCRIPT": script, "VERSION": version()}
    return web.fill(web.source("chat.html"), values), policy
