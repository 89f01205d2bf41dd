"""Targets: VAEs."""

import json

import numpy as np

from fuzz.saving import convert, inspect, safetensors_save, torch_save
from fuzz.target import Target, eighths
from repae_jax.interop import (
    autoencoder_kl,
    dc_ae,
    flux2,
    qwen_image,
    rae,
    rae_config,
    rae_files,
    vae_files,
    wan,
)
from repae_jax.interop.detect_format import detect
from repae_jax.interop.files import read_tensors
from repae_jax.interop.vit import export_vit
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes, variable_shapes
from repae_jax.models.tokenizers.dc_ae import AutoencoderDC
from repae_jax.models.tokenizers.qwen_image_vae import AutoencoderKLQwenImage
from repae_jax.models.tokenizers.rae import RAE as RAEModule

KL = AutoencoderKL(channels=8, multipliers=(1, 2), latent_channels=3, num_res_blocks=1, groups=4)
LDM = AutoencoderKL(channels=32, multipliers=(1,), latent_channels=3, num_res_blocks=1)
QWEN = AutoencoderKLQwenImage(
    base_dim=4, multipliers=(1, 2), latent_channels=3, num_res_blocks=1, temporal_downsample=(True,)
)
FLUX2 = AutoencoderKL(
    channels=8, multipliers=(1, 2), latent_channels=4, num_res_blocks=1, groups=2, patchify=True,
    decoder_channels=4,
)  # fmt: skip
DCAE = AutoencoderDC(
    widths=(4, 8), encoder_layers=(1, 1), decoder_layers=(1, 1), latent_channels=4,
    attention_levels=(1,), batch_norm_levels=(0,), scales=(5,), head_width=4,
)  # fmt: skip
RAE = RAEModule(
    encoder="dinov2", latent_channels=64, encoder_depth=1, encoder_patch=14, decoder_width=8,
    decoder_depth=1, decoder_heads=2, decoder_hidden=12, factor=4, position_step=4.0,
    pixel_mean=(0.5, 0.25, 0.375), pixel_std=(0.25, 0.5, 0.125),
)  # fmt: skip
RAE_PUBLISHED = RAE.clone(  # as the authors' files have it
    factor=16, decoder_width=64, decoder_heads=1, position_step=1.0,
    pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.229, 0.224, 0.225),
)  # fmt: skip
RAE_V2 = RAE_PUBLISHED.clone(
    encoder="dinov3", encoder_patch=16, encoder_depth=2, encoder_layers=(0, 1),
    normalized_pixels=False,
)  # fmt: skip
STATISTICS = {"mean": np.float32([0.125, -0.25, 0.5]), "var": np.float32([0.25, 1, 4])}
SCALES = r"scaling_factor|shift_factor|latents_(mean|std)(/\d)?|_class_name|norm_num_groups"


def _diffusers_kl(folder):
    """As diffusers writes it, with every key of its own."""
    config = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.31.0",
        "_name_or_path": "somewhere",
        "act_fn": "silu",
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "force_upcast": True,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 3,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": 1,
        "mid_block_add_attention": True,
        "norm_num_groups": 4,
        "sample_size": 32,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = autoencoder_kl.export_vae(eighths(parameter_shapes(KL)), KL, "diffusers")
    safetensors_save(folder / "diffusion_pytorch_model.safetensors", tensors)


def _diffusers_kl_per_channel(folder):
    """With statistics per channel, and PyTorch's file."""
    _diffusers_kl(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"latents_mean": [0.25, 0.5, 1.0], "latents_std": [0.5, 1.0, 2.0]}
    config |= {"scaling_factor": 1.0, "shift_factor": None}
    path.write_text(json.dumps(config))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    tensors = autoencoder_kl.export_vae(eighths(parameter_shapes(KL)), KL, "diffusers")
    torch_save(folder / "diffusion_pytorch_model.bin", tensors)


def _diffusers_qwen(folder):
    config = {
        "_class_name": "AutoencoderKLQwenImage",
        "_diffusers_version": "0.35.0",
        "attn_scales": [],
        "base_dim": 4,
        "dim_mult": [1, 2],
        "dropout": 0.0,
        "latents_mean": [0.25, 0.5, 1.0],
        "latents_std": [0.5, 1.0, 2.0],
        "num_res_blocks": 1,
        "temperal_downsample": [True],
        "z_dim": 3,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = qwen_image.export_qwen(eighths(parameter_shapes(QWEN)), QWEN)
    safetensors_save(folder / "diffusion_pytorch_model.safetensors", tensors)


def _written(folder, config, tensors):
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    safetensors_save(folder / "diffusion_pytorch_model.safetensors", tensors)


def _diffusers_wan(folder):
    config = {**wan.wan_config(QWEN), "_diffusers_version": "0.35.0"}
    config |= {"latents_mean": [0.25, 0.5, 1.0], "latents_std": [0.5, 1.0, 2.0]}
    _written(folder, config, qwen_image.export_qwen(eighths(parameter_shapes(QWEN)), QWEN))


def _diffusers_flux2(folder):
    """With the statistics of 2 x 2 patches among its tensors."""
    tensors = flux2.export_flux2(eighths(parameter_shapes(FLUX2)), FLUX2)
    channels = FLUX2.latent_channels
    moments = {"mean": np.linspace(-1, 1, channels), "var": np.linspace(0.5, 2, channels)}
    statistics = {name: values.astype(np.float32) for name, values in moments.items()}
    tensors = {**tensors, **flux2.statistics_tensors(statistics, channels)}
    _written(folder, {**flux2.flux2_config(FLUX2), "_diffusers_version": "0.36.0"}, tensors)


def _diffusers_dc_ae(folder):
    """With BatchNorm, attention of two scales and a scaling factor."""
    tensors = dc_ae.export_dc_ae(eighths(variable_shapes(DCAE)), DCAE)
    config = {**dc_ae.dc_ae_config(DCAE), "_diffusers_version": "0.32.0", "scaling_factor": 0.25}
    _written(folder, config, tensors)


def _diffusers_rae(folder):
    """With the encoder, the decoder, and the mean and deviation of the pixels."""
    tensors = rae.export_rae(eighths(variable_shapes(RAE)), RAE)
    config = {**rae_config.rae_config(RAE), **rae_config.assumed_config(RAE)}
    _written(folder, {**config, "_diffusers_version": "0.37.0"}, tensors)


def _authors_rae(model, name):
    """The authors' decoder, the statistics of its latents by position, and the encoder's file."""

    def write(folder):
        variables = eighths(variable_shapes(model))
        statistics = eighths(dict.fromkeys(("mean", "var"), np.empty((4, 4, 64))))
        rae_files.write_decoder(folder / name, model, variables, statistics)
        encoder = export_vit(variables["constants"]["encoder"], model.vit, "transformers")
        safetensors_save(folder / "encoder.safetensors", encoder)

    return write


def _read_authors_rae(model, name):
    def read(folder):
        variables, statistics = vae_files.read_weights(folder / name, model)
        found = detect(folder / name)
        return {"variables": variables, "statistics": statistics, "format": found.format}

    return read


def _diffusers_shards(folder):
    """Two files and their index."""
    _diffusers_kl(folder)
    whole = folder / "diffusion_pytorch_model.safetensors"
    tensors, places = read_tensors(whole), {}
    for number in range(2):
        file = f"{whole.stem}-0000{number + 1}-of-00002.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::2]}
        safetensors_save(folder / file, part)
        places |= dict.fromkeys(part, file)
    whole.unlink()
    index = {"metadata": {"total_size": 4 * sum(map(np.size, tensors.values()))}}
    path = folder / f"{whole.name}.index.json"
    path.write_text(json.dumps({**index, "weight_map": places}))


def _diffusers_variants(folder):
    """Of several types, and no plain one."""
    _diffusers_kl(folder)
    plain = folder / "diffusion_pytorch_model.safetensors"
    half = {name: array.astype(np.float16) for name, array in read_tensors(plain).items()}
    safetensors_save(folder / f"{plain.stem}.fp16.safetensors", half)
    plain.rename(folder / f"{plain.stem}.ema.safetensors")


def _read_variant(folder):
    vae = vae_files.read_vae(folder, variant="fp16")
    return {"module": repr(vae.module), "params": vae.params, "statistics": vae.statistics}


def _own_export(folder):
    vae = vae_files.StoredVAE(KL, eighths(parameter_shapes(KL)), {}, STATISTICS)
    vae_files.write_diffusers(folder / "vae", vae)


def _own_ldm(folder):
    vae = vae_files.StoredVAE(KL, eighths(parameter_shapes(KL)), {}, STATISTICS)
    vae_files.write_ldm(folder / "vae.safetensors", vae)


def _ldm_file(folder):
    tensors = autoencoder_kl.export_vae(eighths(parameter_shapes(LDM)), LDM, "ldm")
    torch_save(folder / "vae.pt", tensors)
    scale = {"latents_scale": [2.0, 1.0, 0.5], "latents_bias": [0.125, -0.25, 0.5]}
    shaped = {name: np.float32(v).reshape(1, 3, 1, 1) for name, v in scale.items()}
    torch_save(folder / "vae-latents-stats.pt", shaped)


def _ldm_checkpoint(folder):
    """LDM's own training checkpoint, without what else it holds."""
    tensors = autoencoder_kl.export_vae(eighths(parameter_shapes(LDM)), LDM, "ldm")
    content = {"epoch": 3, "global_step": 100, "pytorch-lightning_version": "1.4.2"}
    torch_save(folder / "model.ckpt", {**content, "state_dict": tensors})


def _diffusers_names(folder):
    tensors = autoencoder_kl.export_vae(eighths(parameter_shapes(LDM)), LDM, "diffusers")
    safetensors_save(folder / "vae.safetensors", tensors)


def _read_vae(name):
    def read(folder):
        path = folder / name
        vae = vae_files.read_vae(path)
        found = detect(path)
        return {
            "module": repr(vae.module),
            "params": vae.params,
            "constants": vae.constants,
            "statistics": vae.statistics,
            "format": found.format,
        }

    return read


TARGETS = (
    Target("diffusers AutoencoderKL", _diffusers_kl, _read_vae(""), follows=SCALES,
           optional="/statistics.*", words=inspect("")),
    Target("diffusers AutoencoderKL, .bin", _diffusers_kl_per_channel, _read_vae(""),
           follows=SCALES, optional="/statistics.*", words=convert("", "out.safetensors")),
    Target("diffusers AutoencoderKLQwenImage", _diffusers_qwen, _read_vae(""), follows=SCALES,
           optional="/statistics.*", words=inspect("")),
    Target("diffusers AutoencoderKLWan", _diffusers_wan, _read_vae(""), follows=SCALES,
           optional="/statistics.*", words=inspect("")),
    Target("diffusers AutoencoderKLFlux2", _diffusers_flux2, _read_vae(""),
           follows=f"{SCALES}|batch_norm_eps", optional="/statistics.*",
           words=convert("", "out.safetensors")),
    Target("diffusers AutoencoderDC", _diffusers_dc_ae, _read_vae(""), follows=SCALES,
           optional="/statistics.*", words=inspect("")),
    Target("diffusers AutoencoderRAE", _diffusers_rae, _read_vae(""), follows=SCALES,
           optional="/statistics.*", words=inspect("")),
    Target("RAE's model.pt", _authors_rae(RAE_PUBLISHED, "model.pt"),
           _read_authors_rae(RAE_PUBLISHED, "model.pt"), optional="/statistics.*",
           words=inspect("model.pt")),
    Target("RAEv2's decoder.pt", _authors_rae(RAE_V2, "decoder.pt"),
           _read_authors_rae(RAE_V2, "decoder.pt"), optional="/statistics.*",
           words=inspect("decoder.pt")),
    Target("diffusers AutoencoderKL, shards", _diffusers_shards, _read_vae(""), follows=SCALES,
           optional="/statistics.*", words=inspect("")),
    Target("diffusers AutoencoderKL, a variant", _diffusers_variants, _read_variant,
           follows=SCALES, optional="/statistics.*",
           words=inspect("diffusion_pytorch_model.fp16.safetensors")),
    Target("exported VAE folder", _own_export, _read_vae("vae"), follows=SCALES,
           sealed=r".*\.safetensors", optional="/statistics.*", words=inspect("vae")),
    Target("exported VAE file", _own_ldm, _read_vae("vae.safetensors"), sealed=r".*\.safetensors",
           optional="/statistics.*", words=inspect("vae.safetensors")),
    Target("VAE under LDM's names, .pt", _ldm_file, _read_vae("vae.pt"),
           optional="/statistics.*", words=inspect("vae.pt")),
    Target("LDM checkpoint, .ckpt", _ldm_checkpoint, _read_vae("model.ckpt"),
           words=convert("model.ckpt", "out.safetensors")),
    Target("VAE under diffusers' names", _diffusers_names, _read_vae("vae.safetensors"),
           words=inspect("vae.safetensors")),
)  # fmt: skip
