"""A study of seconds."""

import pathlib

from repae_jax.config.overrides import read_config
from repae_jax.study.plan import arm, base, claim

TINY = pathlib.Path(__file__).with_name("tiny.py")


def get_config():
    study = base()
    study.name = "tiny"
    study.seeds = 1
    study.measured_at = (2, 4)
    config = study.config = read_config(str(TINY), [])
    config.run.checkpoint_every = 1000
    study.judge.update(channels=(8, 8), steps=4, batch_size=16)
    study.measures.update(samples=20, reference=40, heldout=30)
    study.arms.update(
        vae=arm("VAE", "vae"),
        sit=arm("SiT", "vanilla", vae="vae"),
        repae=arm("REPA-E", vae="vae"),
    )
    study.claims.update(ahead=claim("it is ahead", "frechet", "repae", "sit"))
    return study
