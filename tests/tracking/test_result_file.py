"""result.json as the source of tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfdraft.core.errors import UserError
from selfdraft.tracking.files.result_file import markdown, taken_from


def test_a_value_of_a_result_is_taken(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"speedup": {"median": 1.5}}))
    assert taken_from(tmp_path, lambda result: result["speedup"]["median"]) == 1.5


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"result\.json is not there: give the folders of finished runs"):
        taken_from(tmp_path, dict)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"speedup": null}', "[" * 100_000])
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"result\.json is no result of task=evaluate"):
        taken_from(tmp_path, lambda result: result["speedup"]["median"])


def test_a_markdown_table_has_a_rule_as_wide_as_its_header() -> None:
    assert markdown("| a | b |", ["| 1 | 2 |"]) == "| a | b |\n|---|---|\n| 1 | 2 |"
