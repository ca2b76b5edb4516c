import numpy as np
import pytest

from selfdraft.core.statistics import Interval, bootstrap_of_totals, paired_bootstrap


def test_the_estimate_is_the_median_and_lies_within_its_bounds():
    ratios = [0.8, 1.0, 1.1, 1.3, 2.0]
    interval = paired_bootstrap(ratios, seed=0)
    assert interval.median == 1.1
    assert 0.8 <= interval.low < interval.median < interval.high <= 2.0


def test_the_seed_decides_the_draws():
    ratios = np.random.default_rng(0).lognormal(0, 0.3, size=12).tolist()
    first, again, other = (paired_bootstrap(ratios, seed=seed, statistic=np.mean) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("ratios", [[1.5], [1.5] * 7])
def test_a_single_value_gives_a_point(ratios):
    assert paired_bootstrap(ratios, seed=0) == Interval(1.5, 1.5, 1.5)


def test_a_single_group_gives_a_point_at_the_median_of_its_members():
    assert paired_bootstrap([1.0, 3.0], seed=0, groups=["a", "a"]) == Interval(2.0, 2.0, 2.0)


def test_the_bounds_of_a_mean_are_those_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(10, 2, size=400)
    interval = paired_bootstrap(values, seed=0, statistic=np.mean)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_groups_are_resampled_whole():
    # Ten groups of forty equal members are ten independent values, not four hundred: the interval must be as wide.
    alone = np.random.default_rng(2).normal(1.0, 0.2, size=10)
    many, groups = np.repeat(alone, 40), np.repeat(np.arange(10), 40).tolist()
    grouped = paired_bootstrap(many, seed=0, groups=groups)
    naive = paired_bootstrap(many, seed=0)
    assert grouped == pytest.approx(paired_bootstrap(alone, seed=0))
    assert grouped.high - grouped.low > 2 * (naive.high - naive.low)


def test_groups_of_different_sizes_are_not_padded():
    interval = paired_bootstrap([1.0, 2.0, 3.0, 4.0], seed=0, groups=["a", "b", "b", "b"], statistic=np.mean)
    assert interval == Interval(2.5, 1.0, 3.0)  # draws of aa, ab and bb


@pytest.mark.slow
def test_the_interval_has_about_its_nominal_coverage():
    random = np.random.default_rng(5)
    covered = 0
    for seed in range(100):
        interval = paired_bootstrap(random.lognormal(0.0, 0.4, size=25), seed=seed, resamples=200)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.88 <= covered / 100 <= 0.995


@pytest.mark.parametrize(
    ("ratios", "groups"), [([], None), ([1.0, float("nan")], None), ([1.0, float("inf")], None), ([1.0, 2.0], ["a"])]
)
def test_empty_or_invalid_samples_are_refused(ratios, groups):
    with pytest.raises(ValueError):
        paired_bootstrap(ratios, seed=0, groups=groups)


def test_totals_are_drawn_by_group_as_single_measurements_are():
    """The ratio of sums, drawn at once, is the one that a statistic over the drawn measurements gives."""
    counts = np.random.default_rng(2).uniform(1, 5, size=(9, 2))
    groups = ["a", "a", "b", "c", "d", "d", "e", "f", "g"]

    def ratio(sums):
        return sums[..., 0] / sums[..., 1]

    found = bootstrap_of_totals(counts, ratio, seed=5, groups=groups)
    drawn = paired_bootstrap(
        [float(i) for i in range(9)],
        seed=5,
        groups=groups,
        statistic=lambda rows: ratio(counts[rows.astype(int)].sum(0)),
    )
    assert found == pytest.approx(drawn) and found.low < found.median < found.high
    one = bootstrap_of_totals(counts, ratio, seed=5, groups=["a"] * 9)
    assert one.low == one.median == one.high == pytest.approx(ratio(counts.sum(0)))
