"""Draw a sweep as one picture: every job as a line through its values, and which option matters most."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfdraft.core.messages import printable
from selfdraft.tracking.display.picture import draw

BLUE = "#3b6fb6"
MAX_TICKS = 8  # labels beside an axis; of more values only the least and the greatest are named
MIN_JOBS = 4  # from fewer jobs, nothing can be said about what matters


def plot_sweep(path: Path, settings: Sequence[Mapping[str, str]], values: Sequence[float], name: str) -> bool:
    """Draw a sweep into the PNG file `path`.

    Args:
        settings: the values of the options that vary, as they were typed, for every job.
        values: what was measured of each job.
        name: of what was measured.

    Returns:
        Whether there was anything to draw: two jobs and an option that varies.
    """
    keys = [key for key in (settings[0] if settings else ()) if len({each[key] for each in settings}) > 1]
    if len(values) < 2 or not keys:
        return False
    weights = importances(keys, settings, values)

    def paint(figure: Figure) -> None:
        if not weights:
            _draw_parallel(figure.subplots(), keys, settings, values, name)
            return
        left, right = figure.subplots(1, 2, width_ratios=(3, 1))
        _draw_parallel(left, keys, settings, values, name)
        _draw_importances(right, weights, name)

    draw(path, (max(8.0, 4.0 + 1.6 * len(keys)), 4.6), paint)
    return True


def importances(
    keys: Sequence[str], settings: Sequence[Mapping[str, str]], values: Sequence[float]
) -> dict[str, float]:
    """Return each option's share of the differences, the greatest first; empty where there are too few jobs.

    Optuna's PED-ANOVA: how far the values of the best jobs are spread otherwise than those of all jobs.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(values) < MIN_JOBS or len(set(values)) < 2:
        return {}
    spaces = {key: CategoricalDistribution(_in_order({each[key] for each in settings})) for key in keys}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for each, value in zip(settings, values, strict=True):
        params = {key: each[key] for key in keys}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls this way of measuring experimental
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _draw_parallel(
    axes: Axes, keys: Sequence[str], settings: Sequence[Mapping[str, str]], values: Sequence[float], name: str
) -> None:
    """Draw an upright axis for every option and one for what was measured, and every job as a line through them."""
    low, high = min(values), max(values)
    places = {key: _places([each[key] for each in settings]) for key in keys}
    colours = colormaps["viridis"]
    for each, value in sorted(zip(settings, values, strict=True), key=lambda job: job[1]):  # the best is drawn last
        share = (value - low) / (high - low) if high > low else 1.0
        heights = [*(places[key][each[key]] for key in keys), share]
        axes.plot(range(len(heights)), heights, color=colours(share), alpha=0.4 + 0.6 * share, linewidth=1 + share)
    for at, key in enumerate(keys):
        axes.axvline(at, color="#8a8a8a", linewidth=0.8)
        shown = list(places[key].items())
        for text, height in shown if len(shown) <= MAX_TICKS else (shown[0], shown[-1]):
            axes.annotate(printable(text), (at, height), xytext=(3, 3), textcoords="offset points", fontsize=8)
    axes.axvline(len(keys), color="#8a8a8a", linewidth=0.8)
    for height, value in {0.0: low, 1.0: high}.items():
        axes.annotate(f"{value:.3g}", (len(keys), height), xytext=(3, 3), textcoords="offset points", fontsize=8)
    axes.set_xticks(range(len(keys) + 1), [printable(text.replace(".", ".\n")) for text in (*keys, name)], fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(keys) + 0.4)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{len(values)} jobs, by {printable(name)}", fontsize=10)


def _draw_importances(axes: Axes, weights: Mapping[str, float], name: str) -> None:
    """Draw the share of each option as a bar, the greatest on top."""
    keys = list(weights)[::-1]
    axes.barh([printable(key) for key in keys], [weights[key] for key in keys], color=BLUE)
    axes.tick_params(labelsize=8)
    axes.set_xlim(0, 1)
    axes.set_title(f"what matters for {printable(name)}", fontsize=10)


def _places(texts: Sequence[str]) -> dict[str, float]:
    """Return a height between 0 and 1 for every value: evenly, from the least to the greatest."""
    found = _in_order(set(texts))
    return {text: at / (len(found) - 1) if len(found) > 1 else 0.5 for at, text in enumerate(found)}


def _in_order(texts: set[str]) -> list[str]:
    """Return values as they are sorted: as numbers if all are, else as texts."""
    try:
        return sorted(texts, key=float)
    except ValueError:
        return sorted(texts)
