"""A pipeline on every family of VAEs: normalized once, by the run's own statistics."""

import pytest
import torch_pipelines
from torch_pipelines import LABELS, distance, our_images, torch_images, with_tokenizer

from repae_jax.cli import main
from repae_jax.interop import vae_files

RAE = dict(
    family="rae", encoder="dinov2", latent_channels=64, encoder_depth=1, encoder_patch=14,
    decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_hidden=24, factor=4,
)  # fmt: skip
RAEV2 = RAE | dict(
    encoder="dinov3", encoder_depth=2, encoder_patch=16, normalized_pixels=False,
)  # fmt: skip
FAMILIES = {
    "flux": dict(
        family="kl", channels=4, multipliers=(1, 1, 2), latent_channels=16, num_res_blocks=1,
        groups=2, quant_conv=False,
    ),
    "flux2": dict(
        family="kl", channels=4, multipliers=(1, 2), latent_channels=16, num_res_blocks=1,
        groups=2, patchify=True,
    ),
    "qwenimage": dict(
        family="qwenimage", channels=4, multipliers=(1, 1, 2), temporal_downsample=(False, True),
        latent_channels=16, num_res_blocks=1,
    ),
    "dcae": dict(
        family="dcae", widths=(4, 8, 16), encoder_layers=(0, 1, 1), decoder_layers=(0, 1, 1),
        attention_levels=(2,), batch_norm_levels=(0, 1), head_width=4, latent_channels=16,
    ),
    "rae": dict(**RAE, position_step=2.0),
    "rae of other positions": dict(**RAE, position_step=1.0 / 3.0),
    "rae of a moved table": dict(**RAE, table_grid=8),
    "rae of another mlp": dict(**RAE, position_step=2.0, encoder_hidden=128),
    "raev2": dict(**RAEV2, encoder_layers=(0, 1)),
    "raev2 of siglip": RAEV2 | dict(encoder="siglip2", encoder_hidden=96, encoder_layers=(1,)),
}  # fmt: skip


@pytest.mark.slow  # compiles a sampler
@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_those_of_our_sampler(family, tmp_path):
    run, folder = tmp_path / "run", tmp_path / "pipe"
    torch_pipelines.save_random_run(run, with_tokenizer(**FAMILIES[family]))
    assert main(["convert", str(run), str(folder), "--to", "pipeline", "--quiet"]) == 0
    ours, given = our_images(run, LABELS, method="heun", steps=3, guidance_scale=1.5)
    assert ours.std() > 5
    pipe = torch_pipelines.open_in_torch(folder)
    assert distance(torch_images(pipe, LABELS, **given), ours) <= 1
    wrong = pipe.transformer.bn.running_var
    pipe.transformer.bn.running_var = 4 * wrong
    assert distance(torch_images(pipe, LABELS, **given), ours) > 1
    module = vae_files.read_vae(folder / "vae").module
    assert module.latent_channels == FAMILIES[family]["latent_channels"]
