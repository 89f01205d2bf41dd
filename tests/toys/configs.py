"""The tiny configuration with the tenant that the argument names, and a recipe behind a dash."""

import pathlib
import sys

from repae_jax.config import backbone, condition, teacher, tokenizer

_TESTS = pathlib.Path(__file__).parents[1]
sys.path += [path for path in (str(_TESTS), str(_TESTS / "helpers")) if path not in sys.path]


def get_config(words: str = "backbone"):
    import tiny

    import toys.backbone
    import toys.condition
    import toys.encoder
    import toys.tokenizer  # all put themselves into their tables

    toy, _, recipe = words.partition("-")
    config = tiny.get_config(recipe or "repae")
    config.optimizer.backbone.learning_rate = 1e-2  # so that four steps show
    if toy == "backbone":
        config.backbone = backbone(family="mixer")
    if toy == "dit":
        config.backbone = backbone(
            family=toy, patch_size=2, hidden_size=16, depth=2, num_heads=2, encoder_depth=1
        )
        config.objective.interpolant = "ddpm"
        config.sampling.update(method="ddpm", steps=3, guidance_channels=1)
        config.run.sample_steps = 3
    if toy == "lightningdit":
        config.backbone = backbone(
            family=toy, patch_size=2, hidden_size=16, depth=2, num_heads=2, encoder_depth=1
        )
        config.objective.cosine_weight = 1.0
        config.time.update(weighting="lognormal", shift=2.0)
        config.sampling.update(shift=2.0, guidance_channels=1)
    if toy in ("ditdh", "ddt"):
        config.backbone = backbone(
            family=toy, patch_size=2, hidden_size=16, depth=2, num_heads=2, encoder_depth=1,
            head_size=24, head_depth=1, head_heads=2,
        )  # fmt: skip
        config.objective.least_time = 0.05
        config.time.update(weighting="lognormal", shift=2.0)
        config.sampling.update(method="euler", shift=2.0, last_time=0.001)
    if toy == "reg":
        config.backbone.class_token_dim = 8  # the tiny teacher's width
    if toy == "jit":
        config.backbone = backbone(
            family=toy, patch_size=2, hidden_size=16, depth=2, num_heads=2, encoder_depth=2,
            bottleneck=6, context_tokens=3, context_start=1,
        )  # fmt: skip
        config.objective.least_time = 0.05
        config.time.update(weighting="lognormal", mean=0.8, scale=0.8)
    if toy == "condition":
        config.condition = condition("caption")
    if toy == "tokenizer":
        config.tokenizer = tokenizer(family="patches", width=16)
    if toy == "dcae":
        config.tokenizer = tokenizer(
            family=toy, widths=(4, 8, 8), encoder_layers=(0, 1, 1), decoder_layers=(0, 1, 1),
            latent_channels=2, attention_levels=(2,), batch_norm_levels=(1,), head_width=4,
        )  # fmt: skip
    if toy == "rae":
        config.tokenizer = tokenizer(
            family=toy, encoder="dinov2", latent_channels=64, encoder_depth=1, encoder_patch=14,
            decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_hidden=24, factor=4,
        )  # fmt: skip
    if toy == "encoder" and config.teachers:
        pretrain = config.teachers.small.pretrain
        config.teachers.small = teacher(family="strided", patch=8, pretrain=pretrain)
    return config
