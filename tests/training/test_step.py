"""What every recipe of the step keeps: the state's shape, the metrics' names, what it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from parity import OWN_METRICS, quick_jit

from repae_jax.config import RECIPES
from repae_jax.objectives.metrics import METRICS
from repae_jax.runs.build import (
    build_models,
    build_objective,
    build_optimizers,
    fresh_state,
    latent_shape,
)
from repae_jax.training.backbone_loss import BACKBONE_TERMS
from repae_jax.training.noise import sample_draws
from repae_jax.training.step import make_train_step
from repae_jax.training.tokenizer_loss import TOKENIZER_TERMS

SIT = {"denoising_loss", "sit_loss", "grad_norm_sit"}
VAE = {"reconstruction_loss", "perceptual_loss", "kl_loss", "vae_loss", "grad_norm_vae"}
DISCRIMINATOR = {"d_loss", "lecam_loss", "logits_real", "logits_fake", "grad_norm_disc"}
GAN = {"gan_loss", "weighted_gan_loss"}
ALIGNED = {"proj_loss"}
VF = {"vf_distance_loss", "vf_cosine_loss", "vf_adaptive_weight", "weighted_vf_loss"}
VF |= {"grad_norm_vf"}
REPAE = SIT | ALIGNED | VAE | {"vae_align_loss"} | DISCRIMINATOR | GAN
EXPECTED = {
    "repae": REPAE,
    "repa": SIT | ALIGNED,
    "vanilla": SIT,
    "vae": VAE | DISCRIMINATOR | GAN,
    "vavae": VAE | DISCRIMINATOR | GAN | VF,
    "lsgm": REPAE | {"prior_loss"},
    "repae_no_stop_gradient": REPAE,
    "repae_no_latent_norm": REPAE,
    "repae_no_regularisation": REPAE,
}


def build(recipe, *, class_token_dim=0, **objective):
    """(state, batch, draws, step) of the tiny configuration."""
    config = tiny.get_config(recipe)
    config.backbone.class_token_dim = class_token_dim
    if recipe == "vavae":  # the teacher has a token for each latent
        config.teachers.small.patch_size = 4
    config.objective.update(objective)
    models = build_models(config)
    state = jax.jit(lambda key: fresh_state(config, models, key))(jax.random.key(0))
    rng = np.random.default_rng(0)
    size = config.batch_size
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (size, 32, 32, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 10, size), jnp.int32),
    }
    draws = sample_draws(
        jax.random.key(1), size, latent_shape(config, models), class_token_dim=class_token_dim,
        prior=bool(config.objective.prior_weight),
    )  # fmt: skip
    step = make_train_step(models, build_objective(config), build_optimizers(config))
    return state, batch, draws, step


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_keep_the_state_and_name_their_metrics(recipe):
    state, batch, draws, step = build(recipe)
    after, metrics = jax.eval_shape(step, state, batch, draws)
    assert shapes(after) == shapes(state)
    assert set(metrics) == EXPECTED[recipe] | set(OWN_METRICS)
    assert all(m.shape == () and m.dtype == jnp.float32 for m in metrics.values())


def moved(before, after):
    """The networks whose parameters changed."""
    changed = set()
    for name in before.params:
        pairs = zip(
            jax.tree.leaves(before.params[name]), jax.tree.leaves(after.params[name]), strict=True
        )
        if any(not np.array_equal(a, b) for a, b in pairs):
            changed.add(name)
    return changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "trained"),
    [
        ("repae", {"backbone", "tokenizer", "discriminator"}),
        ("repa", {"backbone"}),
        ("vae", {"tokenizer", "discriminator"}),
        ("lsgm", {"backbone", "tokenizer", "discriminator"}),
        ("repae_no_latent_norm", {"backbone", "tokenizer", "discriminator"}),
    ],
)
def test_recipes_train_what_they_say(recipe, trained):
    state, batch, draws, step = build(recipe)
    after, metrics = jax.jit(step)(state, batch, draws)
    assert all(np.isfinite(value) for value in metrics.values())
    assert moved(state, after) == trained
    assert after.step == 1
    jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
    if recipe != "vae":
        statistics = state.batch_stats["latent_norm"], after.batch_stats["latent_norm"]
        same = np.array_equal(statistics[0]["mean"], statistics[1]["mean"])
        assert same == (recipe in ("repa", "repae_no_latent_norm"))


@pytest.mark.slow
def test_before_its_start_the_discriminator_is_left_alone():
    state, batch, draws, step = build("repae", discriminator_start=1)
    step = jax.jit(step)
    first, metrics = step(state, batch, draws)
    assert metrics["gan_loss"] == metrics["weighted_gan_loss"] == metrics["d_loss"] == 0
    assert metrics["grad_norm_disc"] == 0
    assert moved(state, first) == {"backbone", "tokenizer"}
    second, metrics = step(first, batch, draws)
    assert metrics["gan_loss"] != 0
    assert metrics["d_loss"] > 0
    assert "discriminator" in moved(first, second)


@pytest.mark.slow
def test_the_alignment_ends():
    state, batch, draws, step = build("repa", alignment_end=1)
    step = jax.jit(step)
    first, metrics = step(state, batch, draws)
    assert metrics["proj_loss"] != 0
    assert metrics["sit_loss"] != metrics["denoising_loss"]
    second, metrics = step(first, batch, draws)
    assert metrics["proj_loss"] == 0
    assert metrics["sit_loss"] == metrics["denoising_loss"]
    heads = [
        jax.tree.leaves(s.opt_state["backbone"], is_leaf=lambda x: isinstance(x, dict))
        for s in (first, second)
    ]
    mu = [next(part for part in found if isinstance(part, dict)) for found in heads]
    for a, b in zip(*(jax.tree.leaves(m["projectors_0"]) for m in mu), strict=True):
        np.testing.assert_allclose(b, 0.9 * a, rtol=1e-5)  # Adam's first moment without a gradient


def test_the_latents_may_be_the_posteriors_mean():
    """Then the noise of the posterior changes nothing."""
    for posterior, same in (("mean", True), ("sample", False)):
        state, batch, draws, step = build("vanilla", posterior=posterior)
        step = jax.jit(step)
        other = draws.replace(posterior_noise=draws.posterior_noise + 1.0)
        losses = [step(state, batch, noise)[1]["denoising_loss"] for noise in (draws, other)]
        assert (losses[0] == losses[1]) == same


@pytest.mark.slow
def test_optional_terms_join_the_loss():
    weights = dict(cosine_weight=0.5, dispersive_weight=0.25)
    state, batch, draws, step = build("repa", spatial_norm=0.6, **weights)
    _, metrics = jax.jit(step)(state, batch, draws)
    assert set(metrics) == EXPECTED["repa"] | {"cosine_loss", "dispersive_loss"} | set(OWN_METRICS)
    parts = metrics["denoising_loss"] + 0.5 * metrics["cosine_loss"] + 0.5 * metrics["proj_loss"]
    parts += 0.25 * metrics["dispersive_loss"]
    assert metrics["dispersive_loss"] < 0
    np.testing.assert_allclose(metrics["sit_loss"], parts, rtol=1e-5)
    plain = build("repa", **weights)
    assert jax.jit(plain[-1])(*plain[:-1])[1]["proj_loss"] != metrics["proj_loss"]


def test_the_step_is_a_function_of_its_arguments():
    state, batch, draws, step = build("repae")
    step = jax.jit(step)
    first, again = step(state, batch, draws), step(state, batch, draws)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = sample_draws(jax.random.key(2), len(draws.time), draws.noise.shape[1:])
    assert step(state, batch, other)[1]["denoising_loss"] != first[1]["denoising_loss"]


@pytest.mark.slow
def test_the_noise_is_scaled_in_every_term():
    state, batch, draws, scaled = build("repae", noise_scale=2.0)
    *_, plain = build("repae")
    doubled = draws.replace(noise=2.0 * draws.noise)
    ours, expected, other = (
        quick_jit(step)(state, batch, with_draws)[1]
        for step, with_draws in ((scaled, draws), (plain, doubled), (plain, draws))
    )
    for name in ("denoising_loss", "proj_loss", "vae_align_loss"):
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-6)
        assert abs(ours[name] - other[name]) > 1e-4 * abs(other[name])


def test_given_teacher_tokens_replace_the_teachers():
    state, batch, draws, step = build("repae")
    tokens = (jnp.ones((8, 16, 8)),)
    _, metrics = jax.eval_shape(step, state, {**batch, "teacher_tokens": tokens}, draws)
    assert set(metrics) == REPAE | set(OWN_METRICS)
    wrong = (jnp.ones((8, 9, 8)),)
    with pytest.raises(ValueError, match="must have the same number of tokens"):
        jax.eval_shape(step, state, {**batch, "teacher_tokens": wrong}, draws)


def test_draws_are_what_they_say():
    draws = sample_draws(jax.random.key(0), 4000, (2, 2, 3), condition_drop=0.1)
    assert draws.posterior_noise.shape == draws.noise.shape == (4000, 2, 2, 3)
    assert not np.array_equal(draws.posterior_noise, draws.noise)
    for noise in (draws.posterior_noise, draws.noise):
        assert abs(float(noise.mean())) < 0.02  # 48,000 values: standard error 0.0046
        assert abs(float(noise.std()) - 1) < 0.02
    assert draws.time.min() >= 0
    assert draws.time.max() <= 1
    assert abs(float(draws.time.mean()) - 0.5) < 0.02
    assert abs(float(draws.condition_drop.mean()) - 0.1) < 0.02  # standard error 0.005
    assert not sample_draws(
        jax.random.key(0), 100, (1, 1, 1), condition_drop=0.0
    ).condition_drop.any()


def test_several_teachers_are_aligned_at_once():
    config = tiny.get_config()
    config.teachers.other = ConfigDict(config.teachers.small.to_dict())
    config.teachers.other.hidden_size = 12
    models = build_models(config)
    assert models.backbone.teacher_dims == (12, 8)  # in the order of their names: other, small
    state = jax.eval_shape(lambda key: fresh_state(config, models, key), jax.random.key(0))
    heads = state.params["backbone"]
    assert heads["projectors_0"]["fc3"]["kernel"].shape == (8, 12)
    assert heads["projectors_1"]["fc3"]["kernel"].shape == (8, 8)


@pytest.mark.slow
def test_the_class_tokens_loss_joins_the_backbones():
    """The backbone sees the class token at the latents' time, with a noise of its own (REG)."""
    state, batch, draws, step = build("repae", class_token_dim=8, class_token_weight=0.25)
    step = jax.jit(step)
    after, metrics = step(state, batch, draws)
    assert set(metrics) == REPAE | {"class_token_loss"} | set(OWN_METRICS)
    parts = metrics["denoising_loss"] + 0.5 * metrics["proj_loss"]
    parts += 0.25 * metrics["class_token_loss"]
    np.testing.assert_allclose(metrics["sit_loss"], parts, rtol=1e-5)
    # the last layer starts at zero: the loss is the mean square of the velocity n - c
    teacher = build_models(tiny.get_config()).teachers["small"]
    images = teacher.prepare(batch["image"])
    token = teacher.apply(state.frozen["teachers"]["small"], images).class_token
    expected = np.square(draws.class_noise - token).mean()
    np.testing.assert_allclose(metrics["class_token_loss"], expected, rtol=1e-5)
    # after a step in which the last layers leave zero, the embedding learns too
    first, last = (
        s.params["backbone"]["class_token_embed"]["linear"]["kernel"]
        for s in (state, step(after, batch, draws)[0])
    )
    assert np.any(last != first)


@pytest.mark.slow
def test_without_a_class_token_its_weight_changes_nothing():
    states = []
    for weight in (0.03, 5.0):
        *inputs, step = build("repa", class_token_weight=weight)
        states.append(jax.jit(step)(*inputs)[0])
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_the_draws_of_others_stay_with_a_class_token():
    plain, more = (
        sample_draws(jax.random.key(0), 4, (2, 2, 3), class_token_dim=dim) for dim in (0, 6)
    )
    assert plain.class_noise is None
    assert plain.prior_uniform is None
    assert more.class_noise.shape == (4, 6)
    jax.tree.map(np.testing.assert_array_equal, plain, more.replace(class_noise=None))
    others = [more.posterior_noise, more.noise, more.time]
    assert not any(np.isin(more.class_noise, other).any() for other in others)


def test_every_term_has_a_row_among_the_metrics():
    terms = {term.metric for term in (*BACKBONE_TERMS, *TOKENIZER_TERMS)}
    assert terms <= METRICS.keys()
