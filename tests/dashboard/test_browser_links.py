"""The dashboard's page when the proxy is away, is full, is another one, or says less than usual."""

from __future__ import annotations

import json
from typing import Any

import pytest
from browser_window import until_count, until_reads

from agentsched.dashboard.feed import Feed
from agentsched.proxy.access.keys import hash_key, new_key

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(110)]

CONTROL_PLANE = "**/agentsched/v1/**"


async def test_rights_are_asked_again_when_the_proxy_is_back(board: Any, window: Any) -> None:
    shown = await window(board)
    await shown.page.route(CONTROL_PLANE, lambda route: route.abort())
    page = await shown.open("control", wanted=".link-lost")
    await page.unroute(CONTROL_PLANE)
    await page.wait_for_selector(".link-live")
    await until_count(page.locator("button:has-text('Drain'):enabled"), 2)


async def test_a_page_for_which_there_is_no_place_says_so_and_comes_in_later(
    board: Any, window: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.dashboard.board._WATCHERS_MAX", 1)
    first, second = await window(board), await window(board)
    await first.open()
    page = await second.open(wanted=".link-full")
    await until_reads(page.locator("main"), "As many dashboards watch this proxy as may")
    await first.page.goto("about:blank")
    await page.wait_for_selector(".link-live")
    await page.wait_for_selector("text=No programs yet")


#: What a browser does to a page when another tab comes before it, and when it is back.
SEEN = """(is_seen) => {
  Object.defineProperty(document, 'hidden', { configurable: true, get: () => !is_seen });
  document.dispatchEvent(new Event('visibilitychange'));
}"""


async def test_a_page_that_nobody_sees_leaves_its_place_to_others(
    board: Any, window: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.dashboard.board._WATCHERS_MAX", 1)
    first, second = await window(board), await window(board)
    await first.page.clock.install()
    hidden = await first.open()
    page = await second.open(wanted=".link-full")
    await hidden.evaluate(SEEN, False)
    await hidden.clock.fast_forward(11_000)
    await page.wait_for_selector(".link-live")
    await hidden.evaluate(SEEN, True)
    await hidden.wait_for_selector(".link-full")
    await page.goto("about:blank")
    await hidden.clock.fast_forward(10_000)
    await hidden.wait_for_selector(".link-live")


async def test_a_line_that_is_dead_is_not_shown_as_live(
    board: Any, window: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = await window(board)
    await shown.page.clock.install()
    page = await shown.open()
    with monkeypatch.context() as patch:
        # Nothing comes any more, and nobody says that it is over.
        patch.setattr(Feed, "beat", lambda self, now: None)
        await page.clock.fast_forward(41_000)
        await page.wait_for_selector(".link-lost")
    await page.clock.fast_forward(20_000)
    await page.wait_for_selector(".link-live")


async def test_a_proxy_of_another_version_asks_for_another_page(
    board: Any, window: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = await (await window(board)).open()
    assert not await page.locator(".banner").count()
    monkeypatch.setattr("agentsched.dashboard.feed.__version__", "99.0")
    await page.click(".banner:has-text('Another version') button")
    await page.wait_for_selector(".link-live")
    await until_count(page.locator(".banner"), 0)


async def test_a_program_of_which_nothing_is_kept_any_more_is_shown_as_it_was(
    board: Any, window: Any
) -> None:
    await board.chat("alpha", "hello")
    page = await (await window(board)).open("programs/red%2Falpha", wanted=".timeline .span")
    error = {"error": {"message": "No graph of a program of this id is kept."}}
    await page.route("**/timeline", lambda route: route.fulfill(status=404, json=error))
    await page.wait_for_selector(".banner:has-text('What is shown is the latest that is known')")
    assert await page.locator(".timeline .span").count()


async def test_what_no_engine_said_is_not_shown_as_said(board: Any, window: Any) -> None:
    await board.chat("alpha", "hello")
    told = await board.get("/overview")
    told["overview"] |= {"prompt_tokens_total": 1_000, "cached_tokens_total": 620}
    told["overview"] |= {"untold_tokens_total": 400}
    for row in told["programs"]:
        row["untold_tokens"] = row["prompt_tokens"]
    shown = await window(board)

    async def tell(route: Any) -> None:
        body = f"event: frame\ndata: {json.dumps(told)}\n\n"
        await route.fulfill(content_type="text/event-stream", body=body)

    await shown.page.route("**/v1/feed", tell)
    page = await shown.open(wanted=".tile")
    tile = page.locator(".tile:has-text('Prompt from cache')")
    await until_reads(tile, "about 62 %")
    await until_reads(tile, "engines tell of 60 %")
    assert "–" in await page.inner_text(".rows .row [role=gridcell] >> nth=6")


async def test_many_tenants_are_said_to_be_more_than_are_shown(
    board: Any, window: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.dashboard.feed._TENANTS_MAX", 2)
    for tenant in ("red", "blue", "green"):
        await board.chat("alpha", "hello", tenant=tenant)
    page = await (await window(board)).open("tenants")
    await until_reads(page.locator("main"), "3 tenants; the busiest 2 are shown.")


async def test_a_tenant_may_ask_what_would_happen(start: Any, window: Any) -> None:
    """It is not told of the engines, whose table the page then leaves out."""
    key, token = new_key()
    held = {"id": key, "hash": f"sha256:{hash_key(token).hex()}", "tenant": "red"}
    auth = {"mode": "keys", "keys": [held | {"scopes": ["data", "read"]}]}
    async with start(count=1, auth=auth) as board:
        page = await (await window(board)).open("control", wanted="input[type=password]")
        await page.fill("input[type=password]", token)
        await page.keyboard.press("Enter")
        await page.click("text=What would happen?")
        await page.wait_for_selector(".verdict.is-dispatch")
        assert not await page.locator(".verdict table").count()


async def test_a_browser_that_keeps_nothing(board: Any, window: Any) -> None:
    shown = await window(board)
    refuse = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })"
    await shown.page.add_init_script(refuse)
    page = await shown.open()
    await page.keyboard.press("t")
    assert await page.evaluate("document.documentElement.dataset.theme") == "light"
