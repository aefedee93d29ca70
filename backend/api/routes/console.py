"""The console: static files with a strict Content-Security-Policy, the same for everybody and without secrets."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

WEB = Path(__file__).resolve().parent.parent.parent / "web"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def mount_console(app: FastAPI) -> None:
    """Serve the console at / and its files under /web/."""
    app.router.routes.append(Route("/", GZipMiddleware(_page), methods=["GET", "HEAD"], include_in_schema=False))
    app.mount("/web", GZipMiddleware(_Shell(directory=WEB)), name="web")


async def _page(scope: Scope, receive: Receive, send: Send) -> None:
    await FileResponse(WEB / "index.html", headers=HEADERS)(scope, receive, send)


class _Shell(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
