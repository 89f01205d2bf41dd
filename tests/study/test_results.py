import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from repae_jax.errors import UserError
from repae_jax.study.agreement import agreement
from repae_jax.study.plan import claim
from repae_jax.study.results import (
    arm_mean,
    at_work,
    correlation,
    effect,
    mean,
    read_results,
    work,
    write_results,
)


def result(arm, seed, gflop=1.0, **figures):
    """A run's result with figures at steps 10 and 20 (pairs)."""
    steps = {
        str(step): {name: pair[index] for name, pair in figures.items()}
        for index, step in enumerate((10, 20))
    }
    return {
        "arm": arm, "seed": seed, "gflop_per_image": gflop, "config": {"batch_size": 4},
        "accuracies": {"the judge": 0.5}, "diverged": "", "figures": steps,
    }  # fmt: skip


def test_a_mean_has_the_standard_error_of_scipy():
    values = np.random.default_rng(0).normal(size=7)
    found = mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(stats.sem(values))
    assert found.count == 7


def test_a_mean_is_shown_to_the_digits_that_its_error_allows():
    assert str(mean([])) == "-"
    assert str(mean([1.23456])) == "1.235"
    assert str(mean([100.0, 104.0])) == "102.0 ± 2.0"
    assert str(mean([0.1, 0.1004])) == "0.10020 ± 0.00020"
    assert str(mean([0.97, 0.97])) == "0.97 ± 0"
    assert str(mean([1.0e-9, 3.0e-9])) == "2e-09 ± 1e-09"


def test_an_effect_is_paired_by_seed_and_signed_for_the_better_arm():
    results = [
        result("a", 0, frechet=(9.0, 1.0)),
        result("a", 1, frechet=(9.0, 5.0)),
        result("a", 2, frechet=(9.0, 7.0)),
        result("b", 0, frechet=(9.0, 2.0)),
        result("b", 1, frechet=(9.0, 7.0)),
        result("b", 3, frechet=(9.0, 100.0)),  # a seed that a does not have
    ]
    found = effect(results, claim("", "frechet", "a", "b"), 20)
    test = stats.ttest_rel([2.0, 7.0], [1.0, 5.0])
    assert found.difference.value == pytest.approx(1.5)
    assert found.difference.value / found.difference.error == pytest.approx(test.statistic)
    assert (found.ahead, found.diverged, found.difference.count) == (2, 0, 2)
    interval = test.confidence_interval(0.95)
    assert found.difference.interval == pytest.approx((interval.low, interval.high))
    assert found.difference.shown_interval() == "-4.85 to 7.85"
    assert found.verdict == "open"
    other = effect(results, claim("", "frechet", "b", "a"), 20)
    assert other.difference.value == pytest.approx(-1.5)
    assert other.ahead == 0


def test_the_verdict_is_by_the_interval():
    ahead = [result("a", seed, frechet=(9.0, seed + 1.0)) for seed in range(3)]
    ahead += [result("b", seed, frechet=(9.0, seed + 2.0 + seed / 10)) for seed in range(3)]
    assert effect(ahead, claim("", "frechet", "a", "b"), 20).verdict == "ahead"
    assert effect(ahead, claim("", "frechet", "b", "a"), 20).verdict == "behind"
    one = [r for r in ahead if r["seed"] == 0]
    found = effect(one, claim("", "frechet", "a", "b"), 20)
    assert (found.verdict, found.difference.shown_interval()) == ("open", "-")


def test_a_seed_in_which_one_arm_diverged_counts_for_the_other():
    results = [result("a", seed, frechet=(9.0, 1.0)) for seed in range(3)]
    results += [result("b", seed, frechet=(9.0, 2.0)) for seed in range(2)]
    results += [{**result("b", 2), "diverged": "the losses are not finite"}]
    found = effect(results, claim("", "frechet", "a", "b"), 20)
    assert (found.ahead, found.diverged, found.difference.count) == (3, 1, 2)
    found = effect(results, claim("", "frechet", "b", "a"), 20)
    assert (found.ahead, found.diverged, found.difference.count) == (0, 1, 2)


def test_more_is_better_where_the_measure_says_so():
    results = [result("a", 0, psnr=(1.0, 3.0)), result("b", 0, psnr=(1.0, 1.0))]
    assert effect(results, claim("", "psnr", "a", "b"), 20).difference.value == 2.0


def test_figures_that_a_run_lacks_are_left_out():
    results = [result("a", 0, psnr=(1.0, 3.0)), result("a", 1)]
    assert arm_mean(results, "a", "psnr", 20).count == 1
    assert arm_mean(results, "a", "cknna", 20).count == 0


def test_equal_work_is_found_between_the_measured_steps():
    cheap = result("cheap", 0, gflop=1000.0, frechet=(8.0, 4.0))
    dear = result("dear", 0, gflop=1414.2135623730951, frechet=(6.0, 2.0))
    results = [cheap, dear]
    spent = work(cheap, 20)
    assert spent == pytest.approx(1000 * 4 * 20 / 1e3)
    assert at_work(results, "cheap", "frechet", spent).value == pytest.approx(4.0)
    # The dearer arm has spent that after 14.1 steps, half-way from 10 to 20 in logarithms.
    assert at_work(results, "dear", "frechet", spent).value == pytest.approx(4.0)
    assert at_work(results, "dear", "frechet", 10 * spent).count == 0


def test_a_correlation_is_scipys_over_all_runs():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0.1, 0.6, 9), rng.uniform(1, 50, 9)
    results = [
        result(f"arm{i % 3}", i // 3, cknna=(0.0, a), frechet=(0.0, b))
        for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]
    found = correlation(results, "cknna", "frechet", 20)
    assert found.count == 9
    assert found.pearson == pytest.approx(np.corrcoef(x, np.log(y))[0, 1])
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    means = [[v[arm::3].mean() for arm in range(3)] for v in (x, y)]
    assert found.arms == 3
    assert found.arms_spearman == pytest.approx(stats.spearmanr(*means).statistic)
    assert math.isnan(correlation(results[:2], "cknna", "frechet", 20).pearson)
    results[0]["figures"]["20"]["frechet"] = 0.0  # has no logarithm
    assert math.isnan(correlation(results, "cknna", "frechet", 20).pearson)
    assert not math.isnan(correlation(results, "cknna", "frechet", 20).spearman)


def test_runs_agree_where_every_figure_does_to_the_last_bit(tmp_path):
    ours = [result("a", seed, psnr=(1 / 3, 30.0), frechet=(math.nan, 2.0)) for seed in range(3)]
    write_results(tmp_path / "results.jsonl", ours)
    text = (tmp_path / "results.jsonl").read_text()
    (tmp_path / "results.jsonl").write_text(text, "utf-8-sig")  # as editors on Windows save
    theirs = read_results(tmp_path / "results.jsonl")
    found = agreement(ours, theirs)
    assert (found.same, found.apart, found.here, found.there) == (3, [], 0, 0)
    theirs[1]["figures"]["10"]["psnr"] = np.nextafter(1 / 3, 1)
    theirs[2]["figures"]["20"] = {"psnr": 31.0}
    theirs = [*theirs[1:], result("b", 0, psnr=(1.0, 2.0))]
    found = agreement(ours, theirs)
    assert (found.same, found.here, found.there) == (0, 1, 1)
    assert found.apart == [
        f"a:1.figures.10.psnr: {np.nextafter(1 / 3, 1)!r} -> {1 / 3!r}",
        "a:2.figures.20.frechet: None -> 2.0, and 1 more",
    ]
    assert str(found).splitlines()[0] == (
        "0 of 2 runs have the same figures, bit by bit; 1 more are only here, 1 only there"
    )


@pytest.mark.parametrize("text", ["{", "[1]\n", '{"arm": "a", "seed": 0}\n'])
def test_what_holds_no_results_is_named(tmp_path, text):
    path = tmp_path / "results.jsonl"
    with pytest.raises(UserError, match=r"results.jsonl: No such file"):
        read_results(path)
    path.write_text(text)
    with pytest.raises(UserError, match=r"results.jsonl does not hold the results of a study"):
        read_results(path)


def test_a_changed_line_is_damage(tmp_path):
    path = tmp_path / "results.jsonl"
    write_results(path, ours := [result("a", seed, psnr=(1.5, 30.0)) for seed in range(2)])
    data = path.read_bytes()
    assert read_results(path) == ours
    # a flip in the name of the checksum leaves a whole result without one
    names = [range(*name.span()) for name in re.finditer(rb'"sha256":', data)]
    for place in range(0, len(data), 3):
        if any(place in name for name in names):
            continue
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(UserError, match="does not hold the results of a study: line"):
            read_results(path)


def test_lines_of_before_checksums_are_read(tmp_path):
    path = tmp_path / "results.jsonl"
    ours = result("a", 0, psnr=(1.5, 30.0))
    path.write_text(json.dumps(ours) + "\n")
    assert read_results(path) == [ours]
    ours["figures"]["10"]["psnr"] = 10**30  # more than 64 bits hold
    path.write_text(json.dumps(ours) + "\n")
    assert arm_mean(read_results(path), "a", "psnr", 10).value == 1e30
    assert at_work(read_results(path), "a", "psnr", work(ours, 10)).value == 1e30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"figures": {}}, "has no figures, though the run has not diverged"),
        ({"figures": {"10": {}}}, "figures.10 is {}"),
        ({"figures": {"ten": {"psnr": 1.0}}}, "figures has the key 'ten'"),
        ({"diverged": None}, "diverged is None"),
    ],
)
def test_a_line_that_has_lost_figures_is_refused(changes, message, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(result("a", 0, psnr=(1.5, 30.0)) | changes) + "\n")
    with pytest.raises(UserError, match=f"line 1: {message}"):
        read_results(path)


def test_a_run_counts_once(tmp_path):
    path = tmp_path / "results.jsonl"
    write_results(path, [result("a", 0, psnr=(1.5, 30.0)), result("a", 1, psnr=(1.5, 30.0))])
    path.write_text(path.read_text() * 2)
    with pytest.raises(UserError, match="line 3 has a:0 once more; remove one"):
        read_results(path)
