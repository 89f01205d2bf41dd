"""Which loss reaches which network: the gradients that REPA-E keeps apart are exactly zero."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sits import sit_of

from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.batch_norm import LatentNorm
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.objectives.objective import Objective
from repae_jax.runs.state import create_state
from repae_jax.training.noise import sample_draws
from repae_jax.training.step import make_loss

BATCH, SIDE, CLASSES, TEACHER_DIM = 3, 16, 5, 6
NETWORKS = ("backbone", "tokenizer", "discriminator")
MODELS = Models(
    tokenizer=AutoencoderKL(
        channels=8,
        multipliers=(1, 2),
        latent_channels=4,
        num_res_blocks=1,
        middle_attention=False,  # its key biases get no gradient from anything
        groups=4,
    ),
    backbone=sit_of(
        latent_size=8,
        latent_channels=4,
        patch_size=4,
        hidden_size=16,
        depth=2,
        num_heads=2,
        num_classes=CLASSES,
        encoder_depth=1,
        teacher_dims=(TEACHER_DIM,),
        projector_dim=12,
    ),
    latent_norm=LatentNorm(),
    discriminator=PatchDiscriminator(filters=4, num_layers=2),
)


@pytest.fixture(scope="module")
def gradients():
    """`gradients(metric)`: path -> its gradient, in the published configuration."""
    return make_gradients(Objective(lecam_weight=0.1), NETWORKS)


@pytest.fixture(scope="module")
def unstopped():
    """The same of the SiT's term in the ablation without the stop-gradient."""
    return make_gradients(Objective(stop_gradient=False), ("backbone",))


@pytest.fixture(scope="module")
def with_prior():
    """The same of the VAE's terms with LSGM's."""
    return make_gradients(Objective(prior_weight=1e-3), ("tokenizer",))


def make_gradients(objective, trained):
    """`f(metric)`: path -> the metric's gradient with respect to all networks' parameters.

    The metrics' weights are an argument of what is compiled, so one compilation serves them all:
    zero times a finite gradient is zero, and what is exactly zero for one metric stays so.
    """
    state, batch, draws = make_inputs()
    loss = make_loss(MODELS, objective, trained)

    def metrics(params):
        return loss(params, state, batch, draws)[1][0]

    def total(params, weights):
        return sum(weights[name] * value for name, value in metrics(params).items())

    gradient = jax.jit(jax.grad(total))
    names = jax.eval_shape(metrics, state.params)

    def gradient_of(metric):
        assert metric in names
        grads = gradient(state.params, {name: float(name == metric) for name in names})
        leaves, _ = jax.tree_util.tree_flatten_with_path(grads)
        assert all(np.isfinite(leaf).all() for _, leaf in leaves), metric
        return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}

    return gradient_of


def make_inputs():
    """State, batch and draws; all weights random, so that no zero comes from a zero weight."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, BATCH)
    image, latent = jnp.zeros((1, SIDE, SIDE, 3)), jnp.zeros((1, 8, 8, 4))
    key = jax.random.key(0)

    def shapes(model, *inputs, **kwargs):
        return jax.eval_shape(functools.partial(model.init, **kwargs), key, *inputs)

    trees = {
        "backbone": shapes(MODELS.backbone, *blank_inputs(MODELS.backbone)),
        "tokenizer": shapes(MODELS.tokenizer, image, latent),
        "discriminator": shapes(MODELS.discriminator, image, train=True),
    }
    params = {name: randomised(tree["params"], rng) for name, tree in trees.items()}
    batch_stats = {
        "latent_norm": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
        "discriminator": jax.tree.map(
            lambda a: jnp.ones(a.shape), trees["discriminator"]["batch_stats"]
        ),
        "lecam": {"real": jnp.asarray(0.3), "fake": jnp.asarray(-0.3)},
    }
    frozen = {"backbone": {"constants": randomised(trees["backbone"]["constants"], rng)}}
    state = create_state(params, batch_stats, frozen, {})
    tokens = rng.normal(size=(BATCH, 4, TEACHER_DIM)).astype(np.float32)
    batch = {"image": images, "label": labels, "teacher_tokens": (tokens,)}
    return state, batch, sample_draws(key, BATCH, (8, 8, 4), prior=True)


def randomised(shapes, rng):
    """N(0, 1 / fan_in) for kernels, N(0, 0.1^2) for biases, N(1, 0.1^2) for norm scales."""

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if leaf.ndim == 1:
            return (path[-1].key == "scale") + 0.1 * noise
        return noise / np.sqrt(noise[..., 0].size)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def reached(grads, prefix):
    """Those tensors below `prefix` where the gradient is anywhere not zero."""
    return {name for name in tensors(grads, prefix) if grads[name].any()}


def tensors(grads, *prefixes):
    """All tensors below the prefixes."""
    return {name for name in grads if name.startswith(prefixes)}


@pytest.mark.parametrize("metric", ["denoising_loss", "proj_loss", "sit_loss"])
def test_the_diffusion_and_alignment_losses_of_the_sit_do_not_reach_the_vae(gradients, metric):
    grads = gradients(metric)
    assert reached(grads, "backbone/")
    assert not reached(grads, "tokenizer/")
    assert not reached(grads, "discriminator/")


def test_without_the_stop_gradient_the_diffusion_loss_reaches_the_whole_encoder(unstopped):
    grads = unstopped("denoising_loss")
    assert reached(grads, "tokenizer/") == tensors(grads, "tokenizer/encoder/", "tokenizer/quant/")


def test_the_alignment_of_the_vae_reaches_the_whole_encoder_and_nothing_else(gradients):
    grads = gradients("vae_align_loss")
    assert reached(grads, "") == tensors(grads, "tokenizer/encoder/", "tokenizer/quant/")


def test_the_prior_of_lsgm_reaches_the_whole_encoder_and_nothing_else(with_prior):
    grads = with_prior("prior_loss")
    assert reached(grads, "") == tensors(grads, "tokenizer/encoder/", "tokenizer/quant/")


@pytest.mark.parametrize("metric", ["vae_loss", "gan_loss"])
def test_the_loss_of_the_vae_reaches_all_of_it_and_no_other_network(gradients, metric):
    grads = gradients(metric)
    assert reached(grads, "") == tensors(grads, "tokenizer/")


@pytest.mark.parametrize("metric", ["d_loss", "lecam_loss"])
def test_the_loss_of_the_discriminator_reaches_all_of_it_and_no_other_network(gradients, metric):
    grads = gradients(metric)
    assert reached(grads, "") == tensors(grads, "discriminator/")
