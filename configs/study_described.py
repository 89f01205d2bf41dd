"""Text to image with an end-to-end tuned VAE, on rendered objects with captions: three seeds.

    python -m repae_jax study configs/study_described.py --output runs/study_described --jobs 2

The claim of REPA-E for text-to-image: a VAE that REPA-E has tuned makes text-to-image training
better than the VAE before, at equal steps. Besides: REPA on and off, REPA-E in the text-to-image
step itself, and a control whose text encoder sees words without their order. GenEval's tags
`position` and `color_attr` need the order.

repae_jax/study/plan.py describes keys, measures, arms and claims.
"""

from repae_jax.config.overrides import read_config
from repae_jax.study.plan import arm, base, claim, prompt_judge

STEPS = 4000  # of each run; after 2,000, one sample in seven fits its prompt


def get_config():
    study = base()
    study.name = "described"
    study.seeds = 3
    study.measured_at = (STEPS,)
    study.rendered.update(train=40_000, heldout=1000)
    study.judge = prompt_judge()
    study.measures.update(samples=600, reference=4000, heldout=1000)

    config = study.config = read_config("described", [])
    config.data.name = ""  # the study renders its own images
    config.tokenizer.weights = ""
    for optimizer in config.optimizer.values():
        optimizer.update(warmup_steps=STEPS // 20, decay_steps=STEPS)
    config.objective.discriminator_start = STEPS // 2
    config.run.sample_steps = 10
    # A VAE alone as in described.py: smaller batches, and no adversarial term.
    longer = dict(batch_size=16, objective=dict(discriminator_start=STEPS))
    alone = dict(**longer, optimizer=dict(tokenizer=dict(learning_rate=1e-2)))  # random weights
    # On a frozen VAE, the backbone learns from the posterior's mean, as in described.py. REPA-E
    # tunes the VAE by samples, and has a REPA on samples beside it.
    means = dict(objective=dict(posterior="mean"))

    # Without a block, the encoder's state of a word depends on the word alone, and text has no
    # position in this backbone.
    words = dict(**means, text_encoder=dict(depth=0))
    study.arms.update(
        vae=arm("VAE alone", "vae", changes=alone),
        repa=arm("REPA, VAE frozen", "repa", vae="vae", changes=means),
        repae=arm("REPA-E", vae="vae"),
        longer=arm("VAE alone, twice the steps", "vae", vae="vae", changes=longer),
        second=arm("REPA on REPA-E's VAE, frozen", "repa", vae="repae", changes=means),
        second_longer=arm("REPA on the VAE with twice the steps", "repa", vae="longer",
                          changes=means),
        plain=arm("plain, VAE frozen", "vanilla", vae="vae", changes=means),
        samples=arm("REPA on samples, VAE frozen", "repa", vae="vae"),
        words=arm("REPA, VAE frozen, words without order", "repa", vae="vae", changes=words),
    )  # fmt: skip
    for name, text, measure, better, worse in (
        ("drop_in", "the tuned VAE is the better one for text-to-image", "prompts", "second",
         "repa"),
        ("drop_in_frechet", "also in Fréchet distance", "frechet", "second", "repa"),
        ("drop_in_longer", "also beside a VAE with as many steps", "prompts", "second",
         "second_longer"),
        ("drop_in_longer_frechet", "also in Fréchet distance", "frechet", "second",
         "second_longer"),
        ("repae", "REPA-E is ahead of REPA on samples", "prompts", "repae", "samples"),
        ("repae_frechet", "also in Fréchet distance", "frechet", "repae", "samples"),
        ("repa", "REPA is ahead of plain training", "prompts", "repa", "plain"),
        ("repa_frechet", "also in Fréchet distance", "frechet", "repa", "plain"),
        ("means", "the posterior's mean is easier to learn", "prompts", "repa", "samples"),
        ("position", "position needs the order of words", "position", "repa", "words"),
        ("color_attr", "the binding of colors needs the order of words", "color_attr", "repa",
         "words"),
        ("colors", "one object's color needs no order: expected open", "colors", "repa", "words"),
    ):  # fmt: skip
        study.claims[name] = claim(text, measure, better, worse)
    return study
