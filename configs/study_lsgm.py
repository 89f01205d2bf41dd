"""What trains the VAE beside the backbone: diffusion loss, LSGM or REPA-E, on digits; five seeds.

    python -m repae_jax study configs/study_lsgm.py --output runs/study_lsgm --jobs 2

REPA-E (arXiv 2504.10483, section 2 and Table 11) says: the diffusion loss makes the latents
collapse, LSGM's entropy and weight (arXiv 2106.05931) prevent that, and REPA-E generates better
than LSGM. All arms but "vae" align the backbone with the teacher. In those of the diffusion loss
and of LSGM the alignment does not train the VAE by itself.

repae_jax/study/plan.py describes keys, measures, arms and claims.
"""

from repae_jax.config.overrides import read_config
from repae_jax.study.plan import arm, base, claim

STEPS = 400  # as in study_digits.py; chosen before seeing any result
DIMENSIONS = 8 * 8 * 4  # of the latents


def get_config():
    study = base()
    study.name = "lsgm"
    study.seeds = 5
    study.measured_at = (STEPS // 4, STEPS // 2, STEPS)

    config = study.config = read_config("digits_large", [])
    for optimizer in config.optimizer.values():
        optimizer.update(learning_rate=1e-3, warmup_steps=30, decay_steps=STEPS)
    config.sampling.update(method="euler", steps=25)
    config.run.sample_steps = 10

    no_alignment = dict(objective=dict(tokenizer_alignment=0.0))
    # The backbone's loss is a mean over dimensions, so this weight gives each of its nats one nat
    # of entropy.
    entropy = dict(objective=dict(prior_weighting="unweighted", prior_weight=1 / DIMENSIONS))
    study.arms.update(
        vae=arm("VAE alone", "vae"),
        repa=arm("REPA, VAE frozen", "repa", vae="vae"),
        diffusion=arm("the diffusion loss", "repae_no_stop_gradient", vae="vae",
                      changes=no_alignment),
        entropy=arm("the diffusion loss and the entropy", "lsgm", vae="vae", changes=entropy),
        lsgm_uniform=arm("LSGM, uniform times", "lsgm", vae="vae",
                         changes=dict(objective=dict(prior_weighting="ll_uniform"))),
        lsgm=arm("LSGM, importance-sampled times", "lsgm", vae="vae"),
        repae=arm("REPA-E", vae="vae"),
    )  # fmt: skip
    study.claims.update(
        collapse=claim("the diffusion loss makes the latents collapse", "spatial_variance", "vae",
                       "diffusion"),
        collapse_variation=claim("also in total variation", "total_variation", "vae", "diffusion"),
        prevented=claim("LSGM keeps more variance than the diffusion loss", "spatial_variance",
                        "lsgm", "diffusion"),
        prevented_uniform=claim("also with uniform times", "spatial_variance", "lsgm_uniform",
                                "diffusion"),
        prevented_entropy=claim("so does the entropy alone", "spatial_variance", "entropy",
                                "diffusion"),
        better=claim("LSGM generates better than the diffusion loss", "frechet", "lsgm",
                     "diffusion"),
        repae=claim("REPA-E is ahead of LSGM", "frechet", "repae", "lsgm"),
        repae_uniform=claim("also with uniform times", "frechet", "repae", "lsgm_uniform"),
        repae_entropy=claim("also of the entropy alone", "frechet", "repae", "entropy"),
        against_frozen=claim("LSGM is ahead of REPA on the frozen VAE", "frechet", "lsgm", "repa"),
        reconstruction=claim("REPA-E reconstructs better than LSGM", "psnr", "repae", "lsgm"),
        # The next came after 18 of the 35 runs had shown the collapse as one pattern in all images.
        common=claim("the diffusion loss gives all images one pattern", "latent_common",
                     "diffusion", "vae"),
        common_lsgm=claim("LSGM less of it", "latent_common", "diffusion", "lsgm"),
        common_uniform=claim("also with uniform times", "latent_common", "diffusion",
                             "lsgm_uniform"),
        common_entropy=claim("so does the entropy alone", "latent_common", "diffusion", "entropy"),
        common_repae=claim("REPA-E less than LSGM", "latent_common", "lsgm", "repae"),
    )  # fmt: skip
    return study
