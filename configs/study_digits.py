"""The paper's claims on handwritten digits: every arm, five seeds, on two cores.

    python -m repae_jax study configs/study_digits.py --output runs/study_digits --jobs 2

Keys, measures and what `arm` and `claim` take are in repae_jax/study/plan.py. Arms that start from
"vae" have its steps behind them, which "scratch" has not.
"""

import pathlib

from repae_jax.overrides import read_config
from repae_jax.study.plan import arm, base, claim

DIGITS = pathlib.Path(__file__).with_name("digits.py")
STEPS = 400  # so that 55 runs end within 3 hours on two slow cores; chosen before any was looked at
SMALL = dict(sit=dict(hidden_size=96, depth=4, num_heads=3))


def get_config():
    study = base()
    study.name = "digits"
    study.seeds = 5
    study.measured_at = (2 * STEPS // 5, STEPS)  # REPA-E has spent what SiT has in all at 9/20

    config = study.config = read_config(str(DIGITS), [])
    for optimizer in config.optimizer.values():
        optimizer.update(warmup_steps=30, decay_steps=STEPS)
    config.sampling.update(method="euler", steps=25)
    config.run.sample_steps = 10

    study.arms.update(
        vae=arm("VAE alone", "vae"),
        sit=arm("SiT, VAE frozen", "sit", vae="vae"),
        repa=arm("REPA, VAE frozen", "repa", vae="vae"),
        repae=arm("REPA-E", vae="vae"),
        scratch=arm("REPA-E from scratch"),
        diffusion=arm("REPA-E with the diffusion loss into the VAE", "repae_no_stop_gradient",
                      vae="vae"),
        no_norm=arm("REPA-E without LatentNorm", "repae_no_latent_norm", vae="vae"),
        no_regularisation=arm("REPA-E without regularisation", "repae_no_regularisation",
                              vae="vae"),
        second=arm("REPA on REPA-E's VAE, frozen", "repa", vae="repae"),
        repa_small=arm("REPA, smaller SiT, VAE frozen", "repa", vae="vae", changes=SMALL),
        second_small=arm("REPA, smaller SiT, on REPA-E's VAE, frozen", "repa", vae="repae",
                         changes=SMALL),
    )  # fmt: skip
    study.claims.update(
        faster_than_sit=claim("REPA-E is ahead of SiT", "frechet", "repae", "sit"),
        faster_than_repa=claim("REPA-E is ahead of REPA", "frechet", "repae", "repa"),
        repa=claim("REPA is ahead of SiT", "frechet", "repa", "sit"),
        collapse=claim("the diffusion loss takes the latents' variance", "latent_variance",
                       "repae", "diffusion"),
        collapse_samples=claim("and samples suffer", "frechet", "repae", "diffusion"),
        norm=claim("LatentNorm helps", "frechet", "repae", "no_norm"),
        regularisation=claim("without L_REG reconstruction is worse", "psnr", "repae",
                             "no_regularisation"),
        reconstruction=claim("tuning keeps reconstruction", "psnr", "repae", "vae"),
        drop_in=claim("a fresh SiT is better on the tuned VAE", "frechet", "second", "repa"),
        drop_in_small=claim("also one of another size", "frechet", "second_small", "repa_small"),
        scratch=claim("from scratch REPA-E is ahead of REPA on a trained VAE", "frechet",
                      "scratch", "repa"),
        alignment=claim("REPA-E's SiT is more aligned than REPA's", "cknna", "repae", "repa"),
    )  # fmt: skip
    return study
