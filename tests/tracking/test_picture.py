import pytest
from matplotlib import image

from example_lines import evaluation, line
from selfdraft.tracking.display.picture import plot_result
from selfdraft.tracking.numbers.summary import summarize

# A name between dollar signs is a formula to matplotlib, and this one is malformed.
LABELS = {"task": "evaluate", "model": "tiny $\\frac$", "drafter": "jacobi", "dataset": "bundled", "seed": 0}


@pytest.mark.parametrize(
    "lines",
    [
        evaluation(),
        [line(acceptance_by_depth=[])],
        [line(new_tokens=0, decode_s=0.0)],
        [line(str(number), family=f"$family {number}") for number in range(30)],
        [line("a", family="$\\frac$"), line("b", family="\x1b[2J \ud800 \n $x_{$")],
    ],
    ids=["full", "no drafts", "no speedup", "many families", "names like formulas"],
)
def test_a_picture_is_drawn(tmp_path, lines):
    path = tmp_path / "result.png"
    plot_result(summarize(lines, **LABELS), path)
    pixels = image.imread(path)
    assert pixels.shape[0] > 400 and pixels.shape[1] > 1000
    assert pixels[..., :3].std() > 0.01  # something is on it
