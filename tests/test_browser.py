"""The report in headless Chromium: nothing is fetched, nothing fails, and clicks, keys and filters do what they say."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Page, sync_playwright

from browser import CHROMIUM
from tiny_cli import make_wired

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
QUIET = [
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


ASKED: list[str] = []
"""What the page asked the network for."""
COMPLAINTS: list[str] = []


@pytest.fixture(scope="module")
def page(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The report of a run with edges."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *QUIET])
        opened = browser.new_page()
        opened.on("request", lambda request: ASKED.append(request.url))
        opened.on("console", lambda message: COMPLAINTS.append(message.text))
        opened.on("pageerror", lambda error: COMPLAINTS.append(str(error)))
        report = (make_wired(home, tmp_path_factory.mktemp("browser") / "run") / "report.html").as_uri()
        opened.goto(report)
        assert [report] == ASKED
        ASKED.clear()
        yield opened
        browser.close()


@pytest.fixture(autouse=True)
def nothing_is_fetched_and_nothing_fails(page: Page) -> Iterator[Page]:
    yield page
    asked, complaints = list(ASKED), list(COMPLAINTS)
    ASKED.clear()
    COMPLAINTS.clear()
    assert (asked, complaints) == ([], [])


def test_a_head_is_opened_by_a_click_and_left_by_arrow_keys(page: Page):
    first = page.locator("#map button").nth(0)
    first.click()
    assert first.get_attribute("aria-pressed") == "true"
    name = first.get_attribute("aria-label").split(",")[0]
    assert page.locator("#inside h3").inner_text().lower() == name
    page.keyboard.press("ArrowRight")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused.startswith("head 1 of")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#inside h3").inner_text() == "Head 1 of layer 0"
    assert page.locator('#map button[aria-pressed="true"]').count() == 1


def test_every_head_and_mlp_can_be_opened(page: Page):
    for button in page.locator("#map button").all():
        button.click()
        label = button.get_attribute("aria-label")
        kept = int(label.split(", ")[1].split()[0])
        if label.startswith("head"):
            assert page.locator("#inside .dims .kept").count() == kept
        else:
            assert page.locator("#inside tbody tr").count() == min(kept, 100)


def test_a_word_leads_to_the_nodes_that_write_it(page: Page):
    page.locator('#map button[data-head="mlp"]').first.click()
    token = page.locator("#inside tbody .token").first.inner_text().strip()
    page.fill("#search", token)
    assert "found" in page.locator("#hits").inner_text()
    results = page.locator("#results p")
    assert results.count() > 0
    assert all(token.lower() in text.lower() for text in results.locator(".token").all_inner_texts())
    results.first.get_by_role("button").click()
    assert page.locator('#map button[aria-pressed="true"]').count() == 1
    page.fill("#search", "no token says this")
    assert page.locator("#hits").inner_text() == "none"
    assert results.count() == 0


def test_prompts_are_filtered(page: Page):
    rows = page.locator("#answers tbody tr")
    everything = rows.count()
    assert everything > 2
    wanted = rows.nth(1).locator("td").first.inner_text().split("\n")[0]
    page.fill("#filter", wanted)
    assert 0 < rows.locator("visible=true").count() < everything
    page.fill("#filter", "")
    assert rows.locator("visible=true").count() == everything


def test_light_turns_dark_and_back(page: Page):
    def paper() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    before = paper()
    page.click("#theme")
    assert paper() != before
    page.click("#theme")
    assert paper() == before


def test_edges_are_those_of_the_chosen_node_and_no_weaker_than_the_slider_says(page: Page):
    edges = page.evaluate("data.edges.map(({ name, source, nodes }) => ({ name, source, nodes }))")

    def drawn() -> list[str]:
        return page.evaluate("data.edges.filter((edge) => edge.line.style.display !== 'none').map((edge) => edge.name)")

    assert page.locator("#shown").inner_text() == f"{min(100, len(edges))} of {len(edges)}"
    assert page.locator("#graph path.edge").count() == len(edges)
    assert drawn() == [edge["name"] for edge in edges[:100]]
    node = page.locator("#graph .node").first
    name = node.get_attribute("data-node")
    own = [edge for edge in edges[:100] if name == edge["source"] or name in edge["nodes"]]
    node.focus()
    page.keyboard.press("Enter")
    assert drawn() == [edge["name"] for edge in own]
    listed = page.locator("#followed li").all_inner_texts()
    assert sorted(line.split()[0] for line in listed) == sorted(edge["name"] for edge in own)
    node.click()
    page.locator("#strength").fill("1")
    assert drawn() == [edges[0]["name"]]
