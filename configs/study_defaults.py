"""The effect of defaults when REPA-E trains from scratch on digits: one change per arm.

    python -m repae_jax study configs/study_defaults.py --output runs/study_defaults --jobs 2

repae_jax/study/plan.py describes keys, measures, arms and claims.
"""

from ml_collections import ConfigDict

from repae_jax.config import NETWORKS
from repae_jax.config.overrides import read_config
from repae_jax.study.plan import arm, claim


def get_config():
    study = read_config("study_digits", [])
    study.name = "defaults"
    study.seeds = 3
    steps = study.measured_at[-1]

    def rate(value, *names):
        return {"optimizer": {name: {"learning_rate": value} for name in names or NETWORKS}}

    def objective(**terms):
        return {"objective": terms}

    changes = {  # name -> (title, changed keys)
        "slower": ("learning rate 3e-4", rate(3e-4)),
        "quicker": ("learning rate 3e-3", rate(3e-3)),
        "vae_slower": ("the VAE's learning rate 3e-4", rate(3e-4, "tokenizer")),
        "weak_vae_alignment": ("alignment for the VAE x 0.3", objective(tokenizer_alignment=0.5)),
        "strong_vae_alignment": ("alignment for the VAE x 3", objective(tokenizer_alignment=4.5)),
        "strong_sit_alignment": ("alignment for the SiT x 3", objective(backbone_alignment=1.5)),
        "published_kl": ("KL weight 1e-6, as published", objective(kl_weight=1e-6)),
        "strong_kl": ("KL weight x 10", objective(kl_weight=2e-4)),
        "late_discriminator": ("discriminator from half-way",
                               objective(discriminator_start=steps // 2)),
        "no_discriminator": ("no adversarial term", objective(adversarial_weight=0.0)),
    }  # fmt: skip
    study.arms = ConfigDict({"default": arm("defaults")}, sort_keys=False)
    study.claims = ConfigDict(sort_keys=False)
    for name, (title, changed) in changes.items():
        study.arms[name] = arm(title, changes=changed)
        study.claims[name] = claim(f"better than {title}", "frechet", "default", name)
    return study
