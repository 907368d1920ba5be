"""The dashboard for those who use keys, screen readers and the controls of its pages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from browser_window import until_count, until_reads

from agentsched.model import ProgramId, ProgramOpened, TenantId
from agentsched.policy.registry import POINTS

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(110)]

BASH = [{"type": "function", "function": {"name": "bash"}}]

#: The row that a screen reader is told of: that which the focused element names.
ACTIVE = """() => {
  const focused = document.activeElement;
  const row = document.getElementById(focused.getAttribute('aria-activedescendant') ?? '');
  return [focused.getAttribute('role'), row?.getAttribute('aria-selected'), row?.innerText];
}"""


async def test_the_row_that_keys_choose_is_told_to_screen_readers(board: Any, window: Any) -> None:
    host = board.gateway.host
    for number in range(60):
        key = ProgramId(f"red/a program {number:02}")
        host.feed(ProgramOpened(program=key, tenant=TenantId("red"), agent="claude-code"))
    page = await (await window(board)).open()
    await until_reads(page.locator(".foot"), "60 programs")
    for key, at in (("j", 2), ("j", 3), ("End", 61), ("ArrowUp", 60), ("Home", 2)):
        await page.keyboard.press(key)
        await page.wait_for_selector(f".row[aria-selected=true][aria-rowindex='{at}']")
        role, is_selected, text = await page.evaluate(ACTIVE)
        assert (role, is_selected) == ("grid", "true")
        assert "a program" in text
    # How many there are is read out while somebody narrows them, and not whenever one comes.
    assert await page.get_attribute(".foot", "aria-live") == "off"
    await page.fill("#search", "program 07")
    await until_count(page.locator(".rows .row"), 1)
    assert await page.get_attribute(".foot", "aria-live") == "polite"


async def test_the_arrow_of_a_column_says_which_way_it_goes(board: Any, window: Any) -> None:
    for number in range(3):
        await board.chat(f"p{number}", "hello")
    page = await (await window(board)).open()
    first = page.locator(".rows .row[aria-rowindex='2']")
    age = page.locator("[role=columnheader]:has-text('Age')")
    await until_reads(first, "p2")  # the youngest
    assert await age.get_attribute("aria-sort") == "ascending"
    await age.locator("button").click()
    await until_reads(first, "p0")
    assert await age.get_attribute("aria-sort") == "descending"


async def test_a_filter_in_force_is_shown_when_nothing_has_it_any_more(
    board: Any, window: Any
) -> None:
    await board.chat("alpha", "hello")
    await board.chat("beta", "hello", tenant="blue")
    page = await (await window(board)).open()
    tenants = page.locator("select[aria-label=Tenant]")
    await tenants.select_option("blue")
    await until_count(page.locator(".rows .row"), 1)
    await board.client.post("/agentsched/v1/programs/blue%2Fbeta/release")
    await page.wait_for_selector("text=No program matches.")
    assert await tenants.input_value() == "blue"


async def test_who_walks_through_a_timeline_sees_where(board: Any, window: Any) -> None:
    await board.chat("alpha", "fix it", tools=BASH)
    page = await (await window(board)).open("programs/red%2Falpha", wanted=".graph svg")
    await page.wait_for_selector(".timeline .span-tool", state="attached")
    for _ in range(6):
        await page.click("button[aria-label='Zoom in']")
    await page.focus(".chart")
    await page.keyboard.press("ArrowRight")
    await page.wait_for_selector(".span.is-picked", state="attached")
    async with asyncio.timeout(30):
        # What lives grows: the first bar may be drawn anew before it is looked at.
        while True:
            chart = await page.locator(".chart").bounding_box()
            bar = await page.locator(".span.is-picked").bounding_box()
            if (
                bar
                and bar["x"] < chart["x"] + chart["width"]
                and bar["x"] + bar["width"] > chart["x"]
            ):
                break
            await page.keyboard.press("ArrowLeft")


async def test_pages_have_titles_of_their_own(board: Any, window: Any) -> None:
    await board.chat("alpha", "hello")
    shown = await window(board)
    page = await shown.open("tenants")
    assert await page.title() == "Tenants · agentsched"
    page = await shown.open("programs/red%2Falpha", wanted=".graph svg")
    assert await page.title() == "red/alpha · agentsched"


async def test_a_policy_of_before_can_be_chosen_with_another_profile(
    board: Any, window: Any
) -> None:
    policies = board.gateway.host.scheduler.policies
    order = policies.names["order"]
    assert order != "fcfs"
    page = await (await window(board)).open("control", wanted=".policy-form select")
    await page.select_option(".policy-form select >> nth=0", "fcfs")
    chosen = f".policy-form select >> nth={1 + POINTS.index('order')}"
    await page.select_option(chosen, order)
    await page.click("text=Put in force")
    await page.wait_for_selector(".banner.good:has-text('fcfs')")
    policies = board.gateway.host.scheduler.policies
    assert (policies.profile, policies.names["order"]) == ("fcfs", order)


async def test_the_body_of_a_plan_can_be_emptied(board: Any, window: Any) -> None:
    page = await (await window(board)).open("control", wanted=".plan textarea")
    body = page.locator(".plan textarea")
    assert "You fix bugs." in await body.input_value()
    await body.fill("")
    # Whatever the page hears meanwhile draws the form anew.
    await board.client.post("/agentsched/v1/engines/gpu-0/drain")
    await page.wait_for_selector(".chip.engine-draining")
    assert await body.input_value() == ""
