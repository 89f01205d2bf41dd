"""Operations of the train step: counted in the traced program, beside arithmetic from the sizes.

    python benchmarks/flops.py [CONFIG ...] [--json]

What the program does beyond the arithmetic is wasted. GFLOP per image at full size, without
rematerialisation; nothing is compiled or allocated. Without arguments: the paper's main recipe
(SiT-XL/2, f8d4, DINOv2-B, 256 x 256), REPA and SiT on its VAE, SiT-XL/1 with f16d32, and
LightningDiT-XL/1. On cached latents the encoder does not run, and where the cache holds the
teachers' tokens, neither do they.
"""

import argparse
import json
import math
import pathlib

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
DEFAULT = [
    "imagenet256_repae_sdvae.py",
    "imagenet256_repae_sdvae.py:repa",
    "imagenet256_repae_sdvae.py:vanilla",
    "imagenet256_repae_vavae.py",
    "imagenet256_lightningdit_vavae.py",
]


def convolution(side: int, kernel: int, width: int, features: int) -> int:
    """A kernel's taps at every place of a square output."""
    return 2 * side**2 * kernel**2 * width * features


def linear(tokens: int, width: int, features: int) -> int:
    """A linear layer over so many tokens."""
    return 2 * tokens * width * features


def block(side: int, width: int, features: int) -> int:
    """A VAE's residual block."""
    shortcut = convolution(side, 1, width, features) if width != features else 0
    return (
        convolution(side, 3, width, features) + convolution(side, 3, features, features) + shortcut
    )


def spatial_attention(side: int, width: int) -> int:
    """Four 1 x 1 convolutions, and two products between all places."""
    return 4 * convolution(side, 1, width, width) + 4 * side**4 * width


def vae(sizes, side: int) -> tuple[int, int]:
    """Encoder and decoder of an AutoencoderKL for images of `side` pixels."""
    widths = [sizes.channels * m for m in sizes.multipliers]
    sides = [side // 2**i for i in range(len(widths))]

    def level(i, width, blocks):
        total = 0
        for _ in range(blocks):
            total += block(sides[i], width, widths[i])
            total += spatial_attention(sides[i], widths[i]) * (i in sizes.attention_levels)
            width = widths[i]
        return total

    low, top, c = sides[-1], widths[-1], sizes.latent_channels
    middle = 2 * block(low, top, top) + spatial_attention(low, top) * sizes.middle_attention
    quant = convolution(low, 1, 2 * c, 2 * c), convolution(low, 1, c, c)
    encoder = convolution(side, 3, 3, widths[0]) + middle + convolution(low, 3, top, 2 * c)
    decoder = convolution(low, 3, c, top) + middle + convolution(side, 3, widths[0], 3)
    for i, width in enumerate(widths):
        encoder += level(i, widths[max(i - 1, 0)], sizes.num_res_blocks)
        decoder += level(i, widths[min(i + 1, len(widths) - 1)], sizes.num_res_blocks + 1)
        if i + 1 < len(widths):
            encoder += convolution(sides[i + 1], 3, width, width)
        if i:  # up-sampling and convolution in one (models/upsample.py)
            decoder += convolution(sides[i] + 1, 2, width, 4 * width)
    return encoder + quant[0] * sizes.quant_conv, decoder + quant[1] * sizes.quant_conv


def attention(tokens: int, dim: int) -> int:
    """Four projections, and two products between all tokens."""
    return linear(tokens, dim, 4 * dim) + 4 * tokens**2 * dim


def mlp(tokens: int, dim: int, hidden: int, *, gated: bool = False) -> int:
    """Two linear layers, or SwiGLU's three of two thirds of the hidden width."""
    if gated:
        return 3 * linear(tokens, dim, int(2 / 3 * hidden))
    return 2 * linear(tokens, dim, hidden)


def transformer(model) -> tuple[int, int, int]:
    """A backbone's forward pass without heads, its first `encoder_depth` blocks, and its heads.

    The backbone is a SiT, a DiT or a LightningDiT.
    """
    tokens, dim = model.grid**2, model.hidden_size
    hidden = int(dim * model.mlp_ratio)
    each = attention(tokens, dim) + mlp(tokens, dim, hidden, gated=model.swiglu)
    each += linear(1, dim, (6 if model.shift else 4) * dim)
    inputs, outputs = (
        model.patch_size**2 * channels
        for channels in (model.latent_channels, model.output_channels)
    )
    embedding = linear(tokens, inputs, dim) + linear(1, 256, dim) + linear(1, dim, dim)
    final = linear(tokens, dim, outputs) + linear(1, dim, 2 * dim)
    hidden = model.projector.hidden
    heads = sum(
        linear(tokens, dim, hidden) + linear(tokens, hidden, hidden) + linear(tokens, hidden, width)
        for width in model.teacher_dims
    )
    front = embedding + model.encoder_depth * each
    return embedding + model.depth * each + final, front, heads


def vit(model, side: int) -> int:
    """A teacher's forward pass on a grid of 16 x 16 tokens, as REPA asks for it."""
    tokens = (side // 16) ** 2
    patch = linear(tokens, 3 * model.patch_size**2, model.dim)
    rows = tokens + 1
    each = attention(rows, model.dim) + mlp(rows, model.dim, 4 * model.dim)
    return patch + model.depth * each


def vgg(side: int) -> int:
    """LPIPS' VGG16, up to its last tap."""
    total, before = 0, 3
    for level, (width, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        for _ in range(count):
            total += convolution(side // 2**level, 3, before, width)
            before = width
    return total


def discriminator(side: int, filters: int, layers: int) -> int:
    """PatchGAN: 4 x 4 convolutions, all but the last two of stride 2."""
    total, before = 0, 3
    for i in range(layers + 1):
        side = side // 2 if i < layers else side - 1
        width = filters * min(2**i, 8)
        total += convolution(side, 4, before, width)
        before = width
    return total + convolution(side - 1, 4, before, 1)


def arithmetic(config, models, *, latents: bool = False, teachers: bool = True) -> dict[str, int]:
    """Operations of one image's part of a step, by part: a backward pass costs two forward ones.

    It costs one where only the input, or only the weights, want a gradient. With `latents` these
    are given, and without `teachers` their tokens.
    """
    side, trained = config.data.resolution, config.train
    encoder, decoder = vae(models.tokenizer, side)
    parts = {}
    if "tokenizer" in trained:
        parts["VAE"] = 3 * (encoder + decoder)
    elif not latents:
        parts["VAE"] = encoder
    if "backbone" in trained:
        whole, front, heads = transformer(models.backbone)
        parts[f"{type(models.backbone).__name__} with heads"] = 3 * (whole + heads)
        if "tokenizer" in trained and models.teachers:
            parts["alignment for the VAE"] = 2 * (front + heads)
    if models.lpips is not None:
        parts["LPIPS"] = 3 * vgg(side)  # both images forward, one backward
    if "discriminator" in trained:
        filters, layers = models.discriminator.filters, models.discriminator.num_layers
        # fake for the VAE: forward, and back to the image; real and fake for itself: all
        parts["discriminator"] = 8 * discriminator(side, filters, layers)
    if models.teachers and teachers:
        parts["teachers"] = sum(vit(teacher, side) for teacher in models.teachers.values())
    return parts


def main() -> None:
    """Count, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("configs", nargs="*", default=DEFAULT, help="FILE[:RECIPE] in configs/")
    parser.add_argument("--json", action="store_true", help="one line a configuration")
    options = parser.parse_args()
    from repae_jax.config.overrides import read_config
    from repae_jax.parallel.mesh import make_mesh
    from repae_jax.runs.build import build_models
    from repae_jax.training.program import Program

    for name in options.configs:
        config = read_config(str(CONFIGS / name), ["--config.batch_size=8"])
        program = Program(config, build_models(config), make_mesh())
        cache = program.cache
        given = {"latents": cache is not None, "teachers": cache is None or not cache.tokens}
        parts = arithmetic(config, program.models, **given)
        parts = {part: value / 1e9 for part, value in parts.items()}
        expected, found = math.fsum(parts.values()), program.flops() / 1e9
        if options.json:
            figures = {"parts": parts, "arithmetic": expected, "counted": found}
            print(json.dumps({"config": name, **figures}), flush=True)
            continue
        batches = "" if cache is None else f"{cache}\n\n"
        print(f"\n### {name}\n\n{batches}| part | GFLOP per image |\n| --- | --- |")
        for part, value in parts.items():
            print(f"| {part} | {value:.0f} |")
        print(f"| **arithmetic** | **{expected:.0f}** |")
        more = 100 * (found / expected - 1)
        print(f"| **in the program** | **{found:.0f}** ({more:+.2f} %) |", flush=True)


if __name__ == "__main__":
    main()
