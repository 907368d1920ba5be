"""What browsers are told about our pages: load nothing from elsewhere, be framed by nobody."""

from __future__ import annotations

from typing import Final

from aiohttp import web

#: All that a page of ours needs comes from where it came from itself.
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_HSTS: Final = "max-age=31536000"


def protect(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Add the headers to an answer under `/agentsched`; what is set already stays."""
    if not request.path.startswith("/agentsched"):
        return
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    if request.path.startswith("/agentsched/v1"):
        response.headers.setdefault("Cache-Control", "no-store")
    if request.secure:
        response.headers.setdefault("Strict-Transport-Security", _HSTS)
