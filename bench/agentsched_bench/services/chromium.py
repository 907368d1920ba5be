"""A Chromium without a window, and pictures of dashboards that it is shown."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentsched.model import AgentschedError

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

_PROGRAMS: Final = ("chromium", "google-chrome")
_WAIT_MS: Final = 60_000


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser that runs while inside.

    Raises:
        AgentschedError: there is none, or playwright is not installed.
    """
    try:
        from playwright.async_api import async_playwright
    except ImportError:
        raise AgentschedError("pictures need playwright (pip install playwright)") from None
    program = next((found for name in _PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        raise AgentschedError("pictures need Chromium (scripts/install-services)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            await browser.close()


class Window:
    """One window on one proxy's dashboard, open and live from `opened` on."""

    def __init__(self, page: Page, url: str) -> None:
        self._page = page
        self._url = url

    @classmethod
    async def opened(
        cls,
        browser: Browser,
        url: str,
        *,
        width: int = 1280,
        height: int = 860,
        is_dark: bool = False,
        is_phone: bool = False,
    ) -> Window:
        """A window of this size in CSS pixels."""
        context = await browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if is_dark else "light",
            is_mobile=is_phone,
            has_touch=is_phone,
        )
        context.set_default_timeout(_WAIT_MS)
        window = cls(await context.new_page(), url)
        await window.show("overview")
        return window

    async def show(self, page: str, *, wanted: str = ".link-live") -> None:
        """Go to a page (`tenants`, say) and wait for an element of it."""
        await self._page.goto(f"{self._url}/agentsched/#/{page}")
        await self._page.wait_for_selector(wanted)

    async def take(self, file: Path) -> None:
        """A picture of what is shown."""
        await self._page.screenshot(path=file, animations="disabled")
