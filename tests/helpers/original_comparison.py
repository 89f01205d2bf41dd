"""Three steps of the original's loop and three of ours: same weights, batches and draws."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import kinks
import numpy as np
import optax
import original_dit_step as dit
import original_lightning_step as lightning
import original_loop as loop
import original_networks as original
import torch
from exported import load_sit
from parity import OWN_METRICS, state_of, to_nchw
from sits import sit_of

from repae_jax.interop.autoencoder_kl import load_vae
from repae_jax.interop.discriminator import load_discriminator
from repae_jax.interop.lpips import load_lpips
from repae_jax.models.batch_norm import LatentNorm
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.lpips import LPIPS
from repae_jax.models.networks import Models, with_stripes
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.objectives.objective import Objective
from repae_jax.runs.optimizers import adamw
from repae_jax.runs.state import TrainState, create_state
from repae_jax.training.noise import Draws
from repae_jax.training.step import make_train_step

STEPS, BATCH = 3, 4
EMA_DECAY = 0.5  # the default, 0.9999, would move the average by less than float32 shows
NEVER = 100  # a discriminator_start beyond the last step

# our network -> learning rate: the original's defaults, and one of its own for each
RATES = {"backbone": 1e-4, "tokenizer": 1e-4, "discriminator": 1e-4}
DISTINCT_RATES = {"backbone": 1e-4, "tokenizer": 1e-5, "discriminator": 2e-5}

MODELS = Models(
    tokenizer=AutoencoderKL(
        channels=original.VAE["ch"],
        multipliers=original.VAE_MULTIPLIERS,
        latent_channels=original.LATENT_CHANNELS,
        num_res_blocks=original.VAE["num_res_blocks"],
        attention_levels=(1,),
    ),
    backbone=sit_of(
        latent_size=original.LATENT_SIZE,
        latent_channels=original.LATENT_CHANNELS,
        num_classes=original.NUM_CLASSES,
        teacher_dims=original.TEACHER_DIMS,
        **original.SIT,
    ),
    latent_norm=LatentNorm(),
    discriminator=PatchDiscriminator(filters=original.DISCRIMINATOR_FILTERS),
    lpips=LPIPS(
        rescale_inputs=True,
        widths=tuple(width // original.VGG_SHRINK for width in LPIPS.widths),
    ),
)

# our network -> the loop's optimizer, and what turns a state dict into our variables
OPTIMIZERS = {
    "backbone": "optimizer",
    "tokenizer": "optimizer_vae",
    "discriminator": "optimizer_loss_fn",
}
LOADERS = {
    "backbone": lambda arrays, models=MODELS: _load_backbone(arrays, models.backbone),
    "tokenizer": lambda arrays, models=MODELS: {"params": load_vae(arrays, models.tokenizer)},
    "discriminator": lambda arrays, models=MODELS: load_discriminator(arrays, models.discriminator),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration of the step.

    `frozen_vae` is the original's second script; `distinct_rates` are in place of its default.
    `stripes` are those of our networks (models/stripes.py). `backbone` is "sit", or
    "lightningdit" or "dit" with their losses (see original_lightning_step.py and its twin).
    """

    interpolant: str = "linear"
    reconstruction: str = "l1"
    lecam_weight: float = 0.0
    discriminator_start: int = 0
    frozen_vae: bool = False
    distinct_rates: bool = False
    stripes: int = 1
    backbone: str = "sit"

    @property
    def models(self):
        models = with_stripes(MODELS, self.stripes)
        own = {"lightningdit": lightning.BACKBONE, "dit": dit.BACKBONE}
        return dataclasses.replace(models, backbone=own.get(self.backbone, models.backbone))

    @property
    def rates(self):
        return DISTINCT_RATES if self.distinct_rates else RATES

    def __str__(self):
        if self.frozen_vae:
            return f"{self.interpolant}, VAE frozen"
        lecam = "LeCam" if self.lecam_weight else "no LeCam"
        start = {0: "", NEVER: ", GAN never"}.get(
            self.discriminator_start, f", GAN from step {self.discriminator_start}"
        )
        rates = ", distinct rates" if self.distinct_rates else ""
        own = f", {self.stripes} stripes" if self.stripes > 1 else ""
        own += f", {self.backbone}" if self.backbone != "sit" else ""
        return f"{self.interpolant}, {self.reconstruction.upper()}, {lecam}{start}{rates}{own}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the two implementations gave.

    Attributes:
      our_metrics, their_metrics: logged scalars of each step.
      before: path -> array of the state at the start, the same for both.
      ours, theirs: path -> array after the last step. The paths are ours, below "params",
        "batch_stats", "ema" and "moments" (of Adam: {network}/mu and {network}/nu).
    """

    our_metrics: list[dict[str, float]]
    their_metrics: list[dict[str, float]]
    before: dict[str, np.ndarray]
    ours: dict[str, np.ndarray]
    theirs: dict[str, np.ndarray]


@functools.cache
def compare(case: Case) -> Comparison:
    """Three steps of both."""
    networks = make_networks(case)
    state = our_state(networks, case.models)
    inputs, their_metrics, theirs = run_theirs(networks, case)
    our_metrics, after = run_ours(state, case, inputs)
    return Comparison(our_metrics, their_metrics, our_arrays(state), our_arrays(after), theirs)


def make_networks(case: Case) -> dict[str, torch.nn.Module]:
    """The original's modules with random weights, under the names of its loop."""
    own = {"lightningdit": lightning.make_model, "dit": dit.make_model}
    make = own.get(case.backbone, original.make_sit)
    networks = {"model": make(seed=1), "vae": original.make_vae(seed=2)}
    if case.frozen_vae:
        return networks
    changes = {
        "reconstruction_loss": case.reconstruction,
        "lecam_regularization_weight": case.lecam_weight,
        "discriminator_start": case.discriminator_start,
    }
    return networks | {"vae_loss_fn": original.make_vae_loss(seed=3, **changes)}


def safe_batch(networks: Mapping[str, torch.nn.Module], step: int) -> tuple[dict, Draws]:
    """The first of a step's batches and draws that keeps a margin from the networks' kinks."""
    candidates = (make_batch(step, variant) for variant in itertools.count())
    if "vae_loss_fn" not in networks:
        return next(candidates)  # what a SiT is made of is smooth
    return kinks.first_safe(candidates, functools.partial(_distances, networks))


def _distances(networks, candidate):
    """The distances from every kink of the VAE's loss, as a function of the type."""
    batch, draws = candidate

    def distances(dtype):
        vae, loss = (copy.deepcopy(networks[name]).to(dtype) for name in ("vae", "vae_loss_fn"))
        image = to_nchw(batch["image"]).to(dtype) / 127.5 - 1
        posterior = vae.encode(image)
        latents = posterior.mean + posterior.std * to_nchw(draws.posterior_noise).to(dtype)
        again = vae.decode(latents).sample
        with kinks.recorded(loss.perceptual_loss, loss.discriminator) as found:
            loss.perceptual_loss(image, again)
            real, fake = loss.discriminator(image), loss.discriminator(again)
        found += [image - again, 1 - real, 1 + fake]
        if loss.lecam_regularization_weight:
            found.append(real.mean() - loss.ema_fake_logits_mean)
            found.append(loss.ema_real_logits_mean - fake.mean())
        return found

    return distances


def make_batch(step: int, variant: int = 0) -> tuple[dict, Draws]:
    """One of a step's batches and its draws, in our layout."""
    rng = np.random.default_rng((variant, 100 + step))
    side = original.IMAGE_SIZE
    latents = (BATCH, original.LATENT_SIZE, original.LATENT_SIZE, original.LATENT_CHANNELS)
    teachers = [(BATCH, original.NUM_TOKENS, dim) for dim in original.TEACHER_DIMS]
    batch = {
        "image": rng.integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, original.NUM_CLASSES, BATCH).astype(np.int32),
        # with a mean, as the heads': cosines away from 0 can be compared relatively
        "teacher_tokens": tuple(rng.normal(0.3, 1, s).astype(np.float32) for s in teachers),
    }
    draws = Draws(
        posterior_noise=rng.normal(size=latents).astype(np.float32),
        time=rng.uniform(size=BATCH).astype(np.float32),
        noise=rng.normal(size=latents).astype(np.float32),
        condition_drop=np.arange(BATCH) == step,  # another one each step
    )
    return batch, draws


def run_ours(
    state: TrainState, case: Case, inputs: list[tuple[dict, Draws]]
) -> tuple[list[dict[str, float]], TrainState]:
    """Metrics of our steps on `inputs`, by the recipe's defaults but for the case's; the state."""
    objective = Objective(
        interpolant="ddpm" if case.backbone == "dit" else case.interpolant,
        reconstruction=case.reconstruction,
        lecam_weight=case.lecam_weight,
        discriminator_start=case.discriminator_start,
        latent_norm="fixed" if case.frozen_vae else "batch",
        cosine_weight=float(case.backbone == "lightningdit"),
    )
    optimizers = {name: adamw(case.rates[name]) for name in state.opt_state}
    train_step = make_train_step(case.models, objective, optimizers, ema_decay=EMA_DECAY)
    # without LLVM's optimisations: they take half of the compile time and change no operation
    train_step = jax.jit(train_step, compiler_options={"xla_backend_optimization_level": 0})
    metrics = []
    for batch, draws in inputs:
        state, step_metrics = train_step(state, batch, draws)
        metrics.append(in_both_logs(step_metrics))
    return metrics, state


def in_both_logs(metrics: dict) -> dict[str, float]:
    """Our metrics without those that only we have."""
    metrics = dict(metrics)
    for name in ("cosine_loss", "vlb_loss"):  # theirs are in the denoising loss
        if name in metrics:
            metrics["denoising_loss"] += metrics.pop(name)
    return {name: float(value) for name, value in metrics.items() if name not in OWN_METRICS}


def run_theirs(
    networks: Mapping[str, torch.nn.Module], case: Case
) -> tuple[list[tuple[dict, Draws]], list[dict], dict]:
    """Three steps of the original's loop: their batches and draws, their logs, the arrays behind.

    Each step's batch keeps a margin from the kinks of the networks as they are before it.
    """
    script = loop.LDM_ONLY if case.frozen_vae else loop.REPAE
    options = {"path_type": case.interpolant, "compile": False}
    if case.distinct_rates:
        options["learning_rate"] = DISTINCT_RATES["backbone"]
        options["vae_learning_rate"] = DISTINCT_RATES["tokenizer"]
        options["disc_learning_rate"] = DISTINCT_RATES["discriminator"]
    args = loop.default_args(script, **options)
    trained = {name: part for name, part in networks.items() if name in ("model", "vae_loss_fn")}
    if not case.frozen_vae:
        trained["vae"] = networks["vae"]
    training = loop.Training(script, args, trained, EMA_DECAY)
    inputs, logs = [], []
    for step in range(STEPS):
        batch, draws = safe_batch(networks, step)
        inputs.append((batch, dit.on_the_chain(draws) if case.backbone == "dit" else draws))
        logs.append(case_step(training, networks["vae"], case, *inputs[-1]))
    return inputs, logs, their_arrays(networks, training, case.models)


def our_state(networks: Mapping[str, torch.nn.Module], models: Models = MODELS) -> TrainState:
    """The state of our `models` from the original's, by their state dicts and our name tables."""
    parts = _parts(networks)
    loaded = {name: LOADERS[name](state_of(part), models) for name, part in parts.items()}
    params = {name: variables["params"] for name, variables in loaded.items()}
    batch_stats = {"latent_norm": loaded["backbone"]["batch_stats"]}
    frozen = {"backbone": {"constants": loaded["backbone"]["constants"]}}
    trained = ("backbone",)
    if loss := networks.get("vae_loss_fn"):
        batch_stats["discriminator"] = loaded["discriminator"]["batch_stats"]
        if loss.lecam_regularization_weight:
            batch_stats["lecam"] = _lecam(loss)
        frozen["lpips"] = load_lpips(state_of(loss.perceptual_loss.lpips), models.lpips)
        trained = tuple(parts)
    optimizers = {name: adamw(RATES[name]) for name in trained}  # their states know no rate
    state = create_state(params, batch_stats, frozen, optimizers)
    return jax.tree.map(jnp.asarray, state)


def our_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Parameters, statistics, moving averages and Adam's moments of our state, by path."""
    moments = {
        name: {slot: optax.tree_utils.tree_get(opt_state, slot) for slot in ("mu", "nu")}
        for name, opt_state in state.opt_state.items()
    }
    trees = {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}
    leaves, _ = jax.tree_util.tree_flatten_with_path(trees | {"moments": moments})
    return {"/".join(part.key for part in path): np.asarray(leaf) for path, leaf in leaves}


def their_arrays(
    networks: Mapping[str, torch.nn.Module], training, models: Models = MODELS
) -> dict[str, np.ndarray]:
    """The same of the original, under our paths."""
    state = our_state(networks, models)
    ema = LOADERS["backbone"](state_of(training.ema), models)
    averages = {"params": ema["params"], "latent_norm": ema["batch_stats"]}
    state = state.replace(ema={**averages, "constants": ema["constants"]})
    arrays = {n: a for n, a in our_arrays(state).items() if not n.startswith("moments/")}
    for name, part in _parts(networks).items():
        if name not in state.opt_state:
            continue
        optimizer = training.scope[OPTIMIZERS[name]]
        for ours, slot in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
            # What has no moments, such as the position table, is not among our parameters.
            moments = {
                n: optimizer.state[p][slot].numpy()
                for n, p in part.named_parameters()
                if p in optimizer.state
            }
            tree = LOADERS[name](state_of(part) | moments, models)["params"]
            leaves, _ = jax.tree_util.tree_flatten_with_path({"moments": {name: {ours: tree}}})
            arrays |= {"/".join(key.key for key in path): leaf for path, leaf in leaves}
    return arrays


def case_step(training, vae, case: Case, batch: Mapping, draws: Draws) -> dict[str, float]:
    """`their_step` of a case: with a frozen VAE, on its latents."""
    cached = {"latents": moments(vae, batch["image"])} if case.frozen_vae else {}
    return their_step(training, batch, draws, **cached)


def their_step(
    training, batch: Mapping, draws: Draws, *, device: str = "cpu", **cached
) -> dict[str, float]:
    """One step of the original's loop on our batch and draws; returns what it logs.

    With a frozen VAE `cached` has the batch's "latents", as `moments` gives them.
    """
    image, posterior_noise, noise = (
        to_nchw(array).to(device) for array in (batch["image"], draws.posterior_noise, draws.noise)
    )
    time = torch.tensor(draws.time, device=device)[:, None, None, None]
    keep = 1.0 - torch.tensor(draws.condition_drop, device=device).float()  # dropped below 0.1
    posterior = "randn_like" if cached else "randn"
    return training.step(
        image,
        torch.tensor(batch["label"], device=device).long(),
        [torch.tensor(tokens, device=device) for tokens in batch["teacher_tokens"]],
        [(posterior, posterior_noise), ("rand", time), ("randn_like", noise), ("rand", keep)],
        **{name: tensor.to(device) for name, tensor in cached.items()},
    )


def _load_backbone(arrays, model):
    if model is lightning.BACKBONE:
        return lightning.load_lightningdit(arrays, model)
    return load_sit(arrays, model)


def _parts(networks):
    parts = {"backbone": networks["model"], "tokenizer": networks["vae"]}
    if "vae_loss_fn" in networks:
        parts["discriminator"] = networks["vae_loss_fn"].discriminator
    return parts


def _lecam(loss):
    means = {"real": loss.ema_real_logits_mean, "fake": loss.ema_fake_logits_mean}
    return {name: mean.numpy().copy().reshape(()) for name, mean in means.items()}


def moments(vae, images: np.ndarray) -> torch.Tensor:
    """What the original caches of images: mean and standard deviation, (B, 2c, h, w)."""
    with torch.no_grad():
        posterior = vae.encode(to_nchw(images).float() / 127.5 - 1.0)
    return torch.cat([posterior.mean, posterior.std], dim=1)
