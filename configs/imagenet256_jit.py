r"""JiT-B/16 on pixels as published: 200 epochs of ImageNet, without a tokenizer.

    python -m repae_jax train --config configs/imagenet256_jit.py --workdir runs/jit
    python -m repae_jax train --config configs/imagenet256_jit.py:repa --workdir runs/jit_repa
    python -m repae_jax convert checkpoint-last.pth runs/jit_published    # the authors', as a run

The recipe "repa" aligns it with DINOv2-B in pretrained/. Steps count epochs of 1,251 batches. The
published runs keep a second moving average, and JiT-H has dropout; a run here has neither.
"""

from repae_jax.config import apply_recipe, jit256


def get_config(recipe: str = "vanilla"):
    config = jit256()
    config.name = "imagenet256_jit"
    return apply_recipe(config, recipe)
