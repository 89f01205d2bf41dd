"""A study of seconds, with captions."""

import pathlib

from repae_jax.config.overrides import read_config
from repae_jax.study.plan import arm, base, claim, prompt_judge

DESCRIBED = pathlib.Path(__file__).parents[2] / "configs" / "described.py"


def get_config():
    study = base()
    study.name = "tiny described"
    study.seeds = 1
    study.measured_at = (2,)
    study.rendered.update(train=64, heldout=32)
    study.judge = prompt_judge()
    study.judge.update(renders=64, steps=2, batch_size=16)
    study.measures.update(samples=12, reference=40, heldout=30)

    config = study.config = read_config(str(DESCRIBED), [])
    config.data.name = config.tokenizer.weights = ""
    config.batch_size = 8
    config.tokenizer.update(channels=8, groups=4)
    config.backbone.update(hidden_size=32, depth=2, num_heads=2, kv_heads=1, head_width=16,
                           mlp_width=32, encoder_depth=1)  # fmt: skip
    config.text_encoder.update(depth=1)
    config.text_encoder.pretrain.update(steps=2, batch_size=8)
    config.teachers.described.pretrain.update(steps=2, batch_size=16)
    config.sampling.update(steps=2)
    config.run.update(sample_steps=2, checkpoint_every=1000)
    words = dict(text_encoder=dict(depth=0))
    study.arms.update(
        vae=arm("VAE", "vae"),
        repa=arm("REPA", "repa", vae="vae"),
        words=arm("words without order", "repa", vae="vae", changes=words),
    )
    study.claims.update(order=claim("position needs order", "position", "repa", "words"))
    return study
