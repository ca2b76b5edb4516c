"""report.html in headless Chromium: no errors, readable by all, and the viewer steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from browser import chromium

from made_runs import CHANCES, EVIL, comparison_in, evaluation_in, lines_of
from selfdraft.tracking.report.page import write_report

pytestmark = pytest.mark.slow
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
INTERACTIVE_S = 2.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = [
        evaluation_in(folder / "evaluated", lines_of()),
        comparison_in(folder / "compared", lines_of(), ["none", "jacobi", "layer_skip"]),
    ]
    write_report(folder / "report.html", runs)
    return folder / "report.html"


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """The page on a desktop, which must have written no error by the end of the test."""
    yield from _opened(browser, report)


def _opened(browser: Any, report: Path, **context: Any) -> Iterator[Any]:
    errors: list[str] = []
    requests: list[str] = []
    page = browser.new_context(viewport={"width": 1280, "height": 900}, **context).new_page()
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    yield page
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    page.context.close()


def test_the_viewer_steps_by_keyboard_and_by_buttons(opened: Any) -> None:
    opened.focus("#v-answer")
    assert opened.text_content("#v-step") == "Step 1 of 4: 3 drafted (pool), 1 accepted, 2 written"
    assert opened.get_attribute("#v-answer", "aria-activedescendant") == "v-s0"
    opened.keyboard.press("ArrowRight")
    assert opened.text_content("#v-step").startswith("Step 2 of 4: 2 drafted (pool), 2 accepted")
    opened.keyboard.press("End")
    assert opened.text_content("#v-step").startswith("Step 4 of 4") and opened.is_disabled("#v-next")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowLeft")
    assert opened.text_content("#v-step") == "Step 3 of 4: nothing drafted, 1 written"
    opened.click("#v-back")
    opened.keyboard.press("Home")  # the button has the focus, so it does nothing
    assert opened.text_content("#v-step").startswith("Step 2 of 4")
    assert opened.eval_on_selector_all('[role=option][aria-selected="true"]', "found => found.length") == 1
    opened.click("#v-s0")
    assert opened.text_content("#v-step").startswith("Step 1 of 4")


def test_tokens_show_how_they_came(opened: Any) -> None:
    kinds = opened.eval_on_selector_all("#v-answer .token", "found => found.map(each => each.className)")
    came = ["accepted", "corrected", "accepted", "accepted", "bonus", "plain", "accepted"]
    assert kinds == [f"token {kind}" for kind in came]
    titles = opened.eval_on_selector_all("#v-answer .token", "found => found.map(each => each.title)")
    assert titles[0] == f"step 1, accepted, from suffix, probability {100 * CHANCES[0][0]:.0f} %"
    assert titles[1] == "step 1, corrected, from target, probability 70 %"
    assert titles[5] == "step 3, plain, from target, probability 25 %"
    assert opened.get_attribute("#v-s0", "aria-label") == "step 1:  w1 accepted,  w4 corrected"


def test_the_tree_has_every_node_with_its_state(opened: Any) -> None:
    states = opened.eval_on_selector_all("#v-tree g", "found => found.map(each => each.getAttribute('class'))")
    assert sorted(states) == ["accepted", "corrected", "rejected", "rejected", "root"]
    assert "accepted:  w1" in opened.get_attribute("#v-tree svg", "aria-label")
    rows = opened.eval_on_selector_all(
        "#v-table tbody tr", "found => found.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert rows[1] == [" w2", "2", " w1", "2", "rejected", "recycling", "4.0 %"]
    opened.focus("#v-answer")
    opened.keyboard.press("End")
    states = opened.eval_on_selector_all("#v-tree g", "found => found.map(each => each.getAttribute('class'))")
    assert states == ["root", "accepted", "probe"]


def test_blocks_show_their_iterates(opened: Any) -> None:
    cells = "found => found.map(row => [...row.cells].map(cell => cell.className + cell.textContent))"
    rows = opened.eval_on_selector_all("#v-block tbody tr", cells)
    assert rows[0] == ["pass 1 ◂", "wrong w2", "right w4", "right w5"]
    assert rows[1] == ["pass 2 ◂", "right w1", "wrong w2", "right w5"]
    opened.focus("#v-answer")
    opened.keyboard.press("ArrowRight")
    assert "Block 2" in opened.text_content("#v-block")
    opened.keyboard.press("ArrowRight")
    assert opened.text_content("#v-block") == ""  # nothing was refined there


def test_another_contender_shows_the_same_prompt(opened: Any) -> None:
    opened.select_option("#v-turn", index=2)
    asked = opened.text_content("#v-prompt")
    opened.select_option("#v-contender", index=1)
    assert opened.text_content("#v-prompt") == asked and "question" in asked
    assert opened.eval_on_selector("#v-turn", "each => each.selectedIndex") == 2


def test_a_script_in_a_prompt_or_token_does_not_run(opened: Any) -> None:
    assert EVIL in opened.text_content("#v-prompt")
    assert EVIL in opened.text_content("#v-s3")
    opened.focus("#v-answer")
    opened.keyboard.press("End")
    assert opened.title().startswith("SelfDraft report")
    assert opened.query_selector("img") is None


@pytest.mark.parametrize(("scheme", "size"), [("light", "desktop"), ("dark", "phone")])  # every colour and every layout
def test_axe_finds_nothing(browser: Any, report: Path, scheme: str, size: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="extra: browser").Axe()
    for page in _opened(browser, report, color_scheme=scheme):
        width, height = SIZES[size]
        page.set_viewport_size({"width": width, "height": height})
        page.eval_on_selector_all("details", "found => found.forEach(each => { each.open = true; })")
        found = axe.run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # only tables scroll sideways


def test_no_texts_of_a_chart_lie_over_each_other(opened: Any) -> None:
    boxes = """charts => charts.map(chart => [...chart.querySelectorAll('text')].map(text => {
        const box = text.getBoundingClientRect();
        return [box.left, box.top, box.right, box.bottom, text.textContent];
    }))"""
    for texts in opened.eval_on_selector_all("svg.chart", boxes):
        for n, (left, top, right, bottom, text) in enumerate(texts):
            assert right > left and bottom > top
            for x1, y1, x2, y2, other in texts[n + 1 :]:
                assert x2 <= left or right <= x1 or y2 <= top or bottom <= y1, (text, other)


def test_the_page_is_soon_interactive(opened: Any, report: Path) -> None:
    done = "performance.getEntriesByType('navigation')[0].domComplete"
    opened.wait_for_function(f"{done} > 0")
    assert opened.evaluate(done) < 1000 * INTERACTIVE_S
    assert opened.text_content("#v-step")


def test_it_can_be_printed(opened: Any) -> None:
    opened.emulate_media(media="print")
    assert not opened.is_visible("nav") and opened.is_visible("#leaderboard table")
    assert opened.eval_on_selector("#v-answer", "each => getComputedStyle(each).maxHeight") == "none"
    assert opened.pdf()[:4] == b"%PDF"
    # A section that had to stay whole would leave the rest of the page before it empty.
    kept = opened.eval_on_selector_all("section", "found => found.map(each => getComputedStyle(each).breakInside)")
    assert set(kept) == {"auto"}
    assert opened.eval_on_selector("h2", "each => getComputedStyle(each).breakAfter") == "avoid"
    opened.emulate_media(media="print", color_scheme="dark")  # dark colours stay on the screen
    assert opened.eval_on_selector("body", "each => getComputedStyle(each).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.eval_on_selector(".quiet", "each => getComputedStyle(each).color") == "rgb(68, 68, 68)"
