"""The tiny configuration with captions: described images, a text encoder, fuse-dit's backbone."""

import pathlib

import tiny

from repae_jax.config import apply_recipe, backbone, condition, teacher, text_encoder

CONFIG = str(pathlib.Path(__file__))


def get_config(recipe: str = "repae"):
    config = tiny.get_config()
    config.name = "tiny_text"
    config.data.update(source="described", name="64", num_classes=1)
    config.text_encoder = text_encoder(
        family="causal_lm", vocabulary=303, hidden_size=16, depth=1, num_heads=2, num_kv_heads=1,
        head_dim=8, mlp_hidden=16, length=24, null_ids=(0,), whitened=True,
    )  # fmt: skip
    config.text_encoder.weights = "lm"
    config.text_encoder.pretrain.update(steps=3, batch_size=8)
    config.condition = condition("text", drop=0.25)
    config.backbone = backbone(
        family="fusedit", patch_size=2, hidden_size=16, depth=2, num_heads=2, encoder_depth=1,
        kv_heads=1, head_width=8, mlp_width=16,
    )  # fmt: skip
    config.teachers.small = teacher(
        patch_size=8, hidden_size=8, depth=1, num_heads=2, preprocessing="native",
        weights="teacher.safetensors",
    )  # fmt: skip
    config.teachers.small.pretrain.update(steps=3, batch_size=16)
    config.optimizer.backbone.learning_rate = 1e-2  # so that four steps show
    return apply_recipe(config, recipe)
