"""REPA-E on four backbones of equal work, on handwritten digits: five seeds, on two cores.

    python -m repae_jax study configs/study_backbones.py --output runs/study_backbones --jobs 2
    python -m repae_jax study configs/study_backbones.py:scenes --output runs/study_backbones_scenes

The second is for a GPU: rendered scenes with the networks and batches of configs/scenes.py, three
seeds. Every backbone has its authors' loss and times; optimizer and steps are the same, and so are
the sizes but for DDT's, which give it the same number of operations.
"""

from repae_jax.config import backbone
from repae_jax.config.overrides import read_config
from repae_jax.errors import UserError
from repae_jax.study.plan import arm, base, claim

# family -> (title, the keys of its authors' loss, times and sampler)
BACKBONES = {
    "sit": ("SiT", {}),
    "lightningdit": (
        "LightningDiT",
        dict(objective=dict(cosine_weight=1.0), time=dict(weighting="lognormal")),
    ),
    "dit": (
        "DiT",
        dict(objective=dict(interpolant="ddpm"), sampling=dict(method="ddim")),
    ),
    "ddt": (
        "DDT",
        dict(objective=dict(least_time=0.05), time=dict(weighting="lognormal")),
    ),
}
SIZES = {"digits": ("digits_large", 400), "scenes": ("scenes", 10_000)}  # -> configuration, steps
# DDT's sizes, chosen by the operations alone: a plain step has those of the other three within 1 %,
# one of REPA-E 3 % less (tests/study/test_backbone_study.py).
DDT = {
    "digits": dict(
        hidden_size=160, depth=4, num_heads=5, head_size=208, head_depth=1, head_heads=4
    ),
    "scenes": dict(
        hidden_size=320, depth=7, num_heads=5, head_size=512, head_depth=1, head_heads=8
    ),
}


def get_config(size: str = "digits"):
    if size not in SIZES:
        raise UserError(f"study_backbones.py:{size}: there is no such size; use {', '.join(SIZES)}")
    name, steps = SIZES[size]
    study = base()
    study.name = f"backbones, {size}"
    study.seeds = 5 if size == "digits" else 3
    study.measured_at = (steps,)
    config = study.config = read_config(name, [])
    if size == "digits":
        for optimizer in config.optimizer.values():
            optimizer.update(learning_rate=1e-3, warmup_steps=30, decay_steps=steps)
    else:
        study.judge.update(steps=4000, shift=4)
        for optimizer in config.optimizer.values():
            optimizer.update(warmup_steps=steps // 20, decay_steps=steps)
    config.sampling.update(method="euler", steps=25)
    config.run.sample_steps = 10

    study.arms.vae = arm("VAE alone", "vae")
    study.arms.longer = arm("VAE alone, twice the steps", "vae", vae="vae")
    for family, (title, own) in BACKBONES.items():
        _add(study, family, title, changes(config, family, own, size))
    return study


def changes(config, family, own, size):
    """The keys in which a backbone's arms differ from the study's configuration."""
    kept = ("patch_size", "hidden_size", "depth", "num_heads", "encoder_depth")
    sizes = {key: config.backbone[key] for key in kept}
    if family == "ddt":
        sizes |= DDT[size] | dict(time_tokens=1, class_tokens=1)
    return dict(own, backbone=backbone(family=family, **sizes).to_dict())


def _add(study, family, title, changed):
    def add(name, text, recipe, vae):
        study.arms[f"{family}_{name}"] = arm(f"{title}: {text}", recipe, vae=vae, changes=changed)

    add("plain", "plain, VAE frozen", "vanilla", "vae")
    add("repa", "REPA, VAE frozen", "repa", "vae")
    add("repae", "REPA-E", "repae", "vae")
    add("second", "REPA on its REPA-E's VAE, frozen", "repa", f"{family}_repae")
    add("longer", "REPA on the VAE with twice the steps", "repa", "longer")
    arms = {name: f"{family}_{name}" for name in ("plain", "repa", "repae", "second", "longer")}
    for name, text, better, worse in (
        ("over_plain", "REPA-E is ahead of plain training", "repae", "plain"),
        ("over_repa", "REPA-E is ahead of REPA", "repae", "repa"),
        ("over_longer", "also of REPA on a VAE with as many steps", "repae", "longer"),
        ("repa", "REPA is ahead of plain training", "repa", "plain"),
        ("drop_in", "its VAE is the better drop-in", "second", "repa"),
        ("drop_in_longer", "also beside a VAE with as many steps", "second", "longer"),
    ):
        study.claims[f"{family}_{name}"] = claim(
            f"{title}: {text}", "frechet", arms[better], arms[worse]
        )
