"""Our train step against three steps of the original's own loop, with the same draws."""

import inspect

import original_networks
import pytest

if reason := original_networks.reason_to_skip():
    pytest.skip(reason, allow_module_level=True)

import original_differences as difference
from original_comparison import NEVER, STEPS, Case, compare
from original_loop import LDM_ONLY, REPAE, default_ema_decay

from repae_jax.training.step import make_train_step

METRIC_LIMITS = (1e-4, 1e-3, 1e-3)  # at each step
# What moved is compared by the change alone, which starts as the signs of the gradients; Adam's
# second moments are gradients squared. docs/numerics.md has the measured figures.
MOVED_LIMIT, MOVED_TENSOR_LIMIT = 1e-2, 0.3
VALUE_LIMIT, MOMENT_LIMIT = 1e-3, 1e-2

# Each value of each choice once; all combinations take minutes to compile.
QUICK = (
    Case(),
    Case("cosine", "l2", 0.1, discriminator_start=1, distinct_rates=True),
    Case("linear", frozen_vae=True),
    Case(stripes=8),
    Case(backbone="lightningdit"),
    Case(backbone="dit"),
)
CASES = [
    case if case in QUICK else pytest.param(case, marks=pytest.mark.slow)
    for case in difference.CASES
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_log_and_the_state_match(case):
    comparison = compare(case)
    for step in range(STEPS):
        theirs = difference.logged(comparison.their_metrics[step])
        assert set(comparison.our_metrics[step]) == set(theirs)
        assert {name for name, value in theirs.items() if value == 0} == zeros(case, step)
        apart = difference.metrics(comparison, step)
        assert all(value <= METRIC_LIMITS[step] for value in apart.values()), (step, apart)

    assert set(comparison.ours) == set(comparison.theirs)
    groups = difference.MOVED + difference.VALUES
    assert {group for group in groups if not difference.paths(comparison, group)} == absent(case)
    for group in difference.MOVED:
        total, worst, path = difference.moved(comparison, group)
        assert total <= MOVED_LIMIT, (group, total)
        assert worst <= MOVED_TENSOR_LIMIT, (path, worst)
    for group in difference.VALUES:
        worst, path = difference.values(comparison, group)
        limit = MOMENT_LIMIT if group.startswith("moments/") else VALUE_LIMIT
        assert worst <= limit, (path, worst)


def zeros(case, step):
    """The scalars that a configuration leaves at zero; the others would test nothing there."""
    if case.frozen_vae:
        return set()
    none = set() if case.lecam_weight else {"lecam_loss"}
    if step < case.discriminator_start:
        none |= {"gan_loss", "weighted_gan_loss"}
        none |= set() if case.lecam_weight else {"d_loss", "grad_norm_disc"}
    return none


def absent(case):
    """The groups of arrays that a configuration does not have."""
    groups = set() if case.lecam_weight else {"batch_stats/lecam"}
    if case.frozen_vae:
        groups |= {"moments/tokenizer", "moments/discriminator"}
        groups |= {"params/discriminator", "batch_stats/discriminator"}
    return groups


def test_a_frozen_vae_keeps_its_weights_and_the_latent_statistics():
    comparison = compare(Case("linear", frozen_vae=True))
    for name, before in comparison.before.items():
        if name.startswith(("params/tokenizer/", "batch_stats/")):
            assert (comparison.ours[name] == before).all(), name
            assert (comparison.theirs[name] == before).all(), name


@pytest.mark.slow  # compiles another step
def test_a_discriminator_that_never_starts_keeps_its_weights():
    comparison = compare(Case("linear", "l1", 0.0, discriminator_start=NEVER))
    for name, before in comparison.before.items():
        if name.startswith("params/discriminator/"):
            assert (comparison.ours[name] == before).all(), name


@pytest.mark.parametrize("script", [REPAE, LDM_ONLY])
def test_the_default_decay_of_the_moving_average_matches(script):
    ours = inspect.signature(make_train_step).parameters["ema_decay"].default
    assert ours == default_ema_decay(script)
