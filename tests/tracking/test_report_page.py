"""report.html as text: it needs no network, is small, and nothing from outside becomes a part of the page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from made_runs import EVIL, STEPS, comparison_in, decoded, evaluation_in, lines_of
from selfdraft.tracking.report.page import write_report

MAX_BYTES = 6_000_000


class Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))


def page_of(path: Path, *folders: Path, others=()) -> str:
    write_report(path, folders, others)
    return path.read_text()


def test_nothing_from_outside_becomes_an_element(tmp_path: Path) -> None:
    folder = evaluation_in(tmp_path / "run", lines_of(families=(EVIL, "</script>", "{{ 7 * 7 }}")), drafter=EVIL)
    page = page_of(tmp_path / "report.html", folder)
    elements = Elements(page).found
    scripts = [attrs for tag, attrs in elements if tag == "script"]
    assert [attrs.get("type") for attrs in scripts] == ["application/json", None]
    assert not [tag for tag, _ in elements if tag == "img"]
    assert not [name for _, attrs in elements for name in attrs if name.startswith("on")]
    assert "document.title='run'" not in page.split('id="data"')[1].split("</script>")[0].replace("\\u0027", "%")
    assert "{{ 7 * 7 }}" in page and ">49<" not in page


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    page = page_of(tmp_path / "report.html", evaluation_in(tmp_path / "run", lines_of()))
    for tag, attrs in Elements(page).found:
        for name in ("src", "href", "action", "data"):
            value = attrs.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, (tag, name, value)
    assert "@import" not in page and "url(" not in page and "fetch(" not in page
    assert "default-src 'none'" in page


def test_the_leaderboard_s_numbers_are_those_of_result_json(tmp_path: Path) -> None:
    folders = [evaluation_in(tmp_path / "a", lines_of()), comparison_in(tmp_path / "b", lines_of(), ["none", "jacobi"])]
    page = page_of(tmp_path / "report.html", *folders)
    row = cells = None
    seen = 0
    for tag, attrs in Elements(page).found:
        if tag == "tr" and "data-run" in attrs:
            row = attrs
            result = json.loads((tmp_path / str(row["data-run"]) / "result.json").read_text())
            cells = result["contenders"][row["data-contender"]] if "contenders" in result else result
        if "data-key" in attrs:
            value = cells
            for key in attrs["data-key"].split("."):
                value = value[key]
            assert attrs["data-value"] == str(value)
            seen += 1
    assert seen == 3 * 6


def test_every_chart_says_what_it_shows_and_has_a_table(tmp_path: Path) -> None:
    page = page_of(tmp_path / "report.html", evaluation_in(tmp_path / "run", lines_of()))
    elements = Elements(page).found
    charts = [attrs for tag, attrs in elements if tag == "svg" and attrs.get("class") == "chart"]
    assert len(charts) == 2 and all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for tag, attrs in elements if tag == "a"]
    assert {link[1:] for link in links} <= set(ids)
    assert page.count("n=2") >= 2 and 'lang="en"' in page


def test_depths_with_few_offers_are_grey(tmp_path: Path) -> None:
    depths = [{"offered": 30, "accepted": 9}, {"offered": 4, "accepted": 1}]
    page = page_of(
        tmp_path / "report.html", evaluation_in(tmp_path / "run", lines_of(count=1, acceptance_by_depth=depths))
    )
    assert len(re.findall(r'class="mark c0 few"', page)) == 1  # 8 offers of two turns; 60 at the first depth
    assert 'class="r few"' in page


def test_a_bar_of_one_prompt_is_hatched_and_that_of_plain_decoding_is_not(tmp_path: Path) -> None:
    lines = lines_of(families=("qa",), count=1)
    page = page_of(tmp_path / "report.html", comparison_in(tmp_path / "run", lines, ["none", "pool"]))
    bars = [attrs["class"] for _, attrs in Elements(page).found if str(attrs.get("class")).startswith("bar")]
    assert bars == ["bar single", "bar plain"]
    assert page.count("[1 prompt]") == 1 and page.count(">n=1<") == 2 and 'class="whisker"' not in page


def test_many_reasons_are_folded(tmp_path: Path) -> None:
    folders = [evaluation_in(tmp_path / str(n), lines_of(), max_nodes=n) for n in range(7)]
    assert "more</summary>" not in page_of(tmp_path / "few.html", *folders[:5])
    page = page_of(tmp_path / "report.html", *folders)
    assert page.count("<summary>2 more</summary>") == 1 and page.count("<dt>pool (max_nodes=") == 7


def test_results_of_others_are_beside_ours(tmp_path: Path) -> None:
    other = {
        "name": EVIL,
        "source": "x.jsonl",
        "prompts": 80,
        "tokens_per_s": 9.5,
        "tokens_per_step": 2.25,
        "speedup": None,
    }
    page = page_of(tmp_path / "report.html", evaluation_in(tmp_path / "run", lines_of()), others=[other])
    assert ">2.25<" in page and "Results of others" in page
    assert "this report" in page and ">1.54×<" in page  # 10 s of plain decoding against 6.5 s, with the prefills


@pytest.mark.slow
def test_twenty_runs_of_forty_eight_prompts_are_small(tmp_path: Path) -> None:
    """Each answer has 128 tokens in 60 steps, whose trees have 24 nodes with sources of their own."""
    tree = [list(range(1, 9)) * 3, [-1, *range(23)], [0], 4, "pool", None, ["suffix"] * 12 + ["recycling"] * 12]
    long = [tree] * 60
    families = [f"family {n}" for n in range(12)]
    lines = [
        decoded(f"{family}-{n}", family, steps=long, prompt_text="long " * 2000)
        for family in families
        for n in range(4)
    ]
    sample = {"steps": 60, "chances": [[0.123] * 25] * 60}
    folders = []
    for n in range(20):
        folder = evaluation_in(tmp_path / str(n), lines, max_nodes=n)
        turns = [{"id": each["id"], "turn": 0, "contenders": {"drafter": sample}} for each in lines[:6]]
        texts = {str(token): f" word{token}" for token in range(9)}
        (folder / "viewer.json").write_text(json.dumps({"turns": turns, "texts": texts}))
        folders.append(folder)
    page = page_of(tmp_path / "report.html", *folders)
    assert 1_000_000 < len(page.encode()) < MAX_BYTES
    assert STEPS[0][0] != tree[0] and page.count("data-contender") == 20
