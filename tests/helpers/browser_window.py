"""A page of the dashboard in a real browser, and waiting for what somebody would see there."""

from __future__ import annotations

from typing import Any

#: How long anything that is waited for may take on a busy machine.
PATIENCE_MS = 30_000


class Window:
    """A page of the dashboard, which fails a test when the page complains."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self._url = url
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)
        #: Every address that the page asked for.
        self.asked: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))

    def _hear(self, message: Any) -> None:
        # A 401 before the login, and the like, is the page finding out where it stands.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    async def open(self, page: str = "overview", *, wanted: str = ".link-live") -> Any:
        await self.page.goto(f"{self._url}/agentsched/#/{page}")
        await self.page.wait_for_selector(wanted)
        return self.page


async def until_count(locator: Any, count: int) -> None:
    """Without evaluating anything in the page: its policy forbids that."""
    from playwright.async_api import expect

    await expect(locator).to_have_count(count, timeout=PATIENCE_MS)


async def until_reads(locator: Any, text: str) -> None:
    """Until somebody who looks at it can read that there."""
    from playwright.async_api import expect

    await expect(locator).to_contain_text(text, use_inner_text=True, timeout=PATIENCE_MS)
