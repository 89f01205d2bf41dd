"""RAE where diffusers' AutoencoderRAE computes another network: RAEv2, and stored positions."""

import torch
import transformers
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

# kind -> transformers' class, pixels of the table of positions, tokens before those of the patches
ENCODERS = {
    "dinov2": ("Dinov2WithRegisters", 518, 5),
    "siglip2": ("SiglipVision", 256, 0),
    "mae": ("ViTMAE", 224, 1),
    "dinov3": ("DINOv3ViT", 256, 5),
}
NORMS = ("layernorm", "post_layernorm", "norm")  # the last norm, in transformers' classes
HEAD = 64


def make_encoder(kind, width, depth, patch, hidden):
    """An encoder whose last norm has neither scale nor bias."""
    name, side, _ = ENCODERS[kind]
    sizes = dict(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // HEAD,
        patch_size=patch, image_size=side,
    )  # fmt: skip
    sizes |= {"mlp_ratio": hidden // width} if kind == "dinov2" else {"intermediate_size": hidden}
    sizes |= {
        "mae": {"mask_ratio": 0.0},
        "dinov3": {"num_register_tokens": 4, "key_bias": True},
    }.get(kind, {})
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}Model")(config)
    norm = next(m for path, m in model.named_modules() if path.split(".")[-1] in NORMS)
    norm.weight = norm.bias = None
    if kind == "dinov3":  # its authors' files hold the periods of the rotary positions
        model.rope_embed = nn.Module()
        periods = 100.0 ** torch.arange(0, 1, 4 / HEAD, dtype=torch.float32)
        model.rope_embed.register_buffer("periods", periods)
    return model.requires_grad_(False)


class RepaeRAE(ModelMixin, ConfigMixin):
    """A frozen encoder, and a ViT that decodes its tokens.

    Images are (B, 3, H, W) in [-1, 1], and latents (B, c, h, w) are not normalized; their mean and
    standard deviation are `_latents_mean` and `_latents_std`.
    """

    @register_to_config
    def __init__(
        self,
        encoder_type: str = "dinov2",
        encoder_hidden_size: int = 768,
        encoder_patch_size: int = 14,
        encoder_num_hidden_layers: int = 12,
        encoder_intermediate_size: int = 3072,
        encoder_layers: list | tuple = (),
        encoder_input_size: int = 224,
        encoder_norm_mean: list | tuple = (0.485, 0.456, 0.406),
        encoder_norm_std: list | tuple = (0.229, 0.224, 0.225),
        decoder_hidden_size: int = 512,
        decoder_num_hidden_layers: int = 8,
        decoder_num_attention_heads: int = 16,
        decoder_intermediate_size: int = 2048,
        patch_size: int = 16,
        num_channels: int = 3,
        normalized_pixels: bool = True,
        statistics_shape: list | tuple | None = None,
        auto_map: dict | None = None,  # where diffusers' AutoModel finds this class
    ):
        super().__init__()
        self.encoder = make_encoder(
            encoder_type, encoder_hidden_size, encoder_num_hidden_layers, encoder_patch_size,
            encoder_intermediate_size,
        )  # fmt: skip
        for name, values in (("mean", encoder_norm_mean), ("std", encoder_norm_std)):
            buffer = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(f"encoder_{name}", buffer)
        for name, value in (("mean", 0.0), ("std", 1.0)):
            self.register_buffer(f"_latents_{name}", torch.full(statistics_shape or (1,), value))
        self.grid = encoder_input_size // encoder_patch_size
        self.decoder = RAEDecoder(
            encoder_hidden_size, decoder_hidden_size, decoder_num_hidden_layers,
            decoder_num_attention_heads, decoder_intermediate_size, self.grid**2, patch_size,
            num_channels, self.grid * patch_size,
        )  # fmt: skip
        table = self.decoder.decoder_pos_embed
        self.decoder.register_buffer("decoder_pos_embed", table)  # which the folder holds

    def encode(self, x, return_dict=True):
        """Images -> latents."""
        config, side = self.config, self.grid * self.config.patch_size
        if tuple(x.shape[-2:]) != (side, side):
            raise ValueError(f"images of {tuple(x.shape[-2:])} pixels: give {side} x {side}")
        size = config.encoder_input_size
        pixels = (x + 1.0) / 2.0
        if size != side:
            pixels = functional.interpolate(pixels, (size, size), mode="bicubic")
        pixels = (pixels - self.encoder_mean) / self.encoder_std
        patches = next(weight for weight in self.encoder.parameters() if weight.ndim == 4)
        tokens = self._tokens(pixels.to(patches.dtype))
        latents = tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return EncoderOutput(latent=latents) if return_dict else (latents,)

    def _tokens(self, pixels):
        """The average of the chosen blocks' normed patch tokens (B, N, c), as RAEv2 has it."""
        config, found = self.config, []
        _, _, first = ENCODERS[config.encoder_type]
        blocks = next(m for m in self.encoder.modules() if isinstance(m, nn.ModuleList))
        layers = config.encoder_layers or [len(blocks) - 1]
        keep = [
            blocks[number].register_forward_hook(lambda *found_here: found.append(found_here[-1]))
            for number in layers
        ]
        try:
            self._run_encoder(pixels)
        finally:
            for hook in keep:
                hook.remove()
        hidden = [x[0] if isinstance(x, tuple) else x for x in found]
        epsilon = self.encoder.config.layer_norm_eps
        normed = [functional.layer_norm(x[:, first:], x.shape[-1:], eps=epsilon) for x in hidden]
        if not config.encoder_layers:
            return normed[0]
        return sum(normed) / len(normed) + normed[-1].mean(dim=1, keepdim=True)

    def _run_encoder(self, pixels):
        kind = self.config.encoder_type
        if kind == "dinov3":
            periods = self.encoder.rope_embed.periods.float()
            self.encoder.rope_embeddings.inv_freq = 1.0 / periods
        if kind == "mae":  # without shuffling
            order = torch.arange(self.grid**2, device=pixels.device)
            return self.encoder(
                pixels, order.expand(len(pixels), -1), interpolate_pos_encoding=True
            )
        if kind == "siglip2":
            return self.encoder(pixels, interpolate_pos_encoding=True)
        return self.encoder(pixels)

    def decode(self, z, return_dict=True):
        """Latents -> images."""
        if tuple(z.shape[-2:]) != (self.grid, self.grid):
            raise ValueError(f"latents of {tuple(z.shape[-2:])}: give {self.grid} x {self.grid}")
        patches = self.decoder(z.flatten(2).transpose(1, 2)).logits
        pixels = self.decoder.unpatchify(patches)
        if self.config.normalized_pixels:
            pixels = pixels * self.encoder_std + self.encoder_mean
        images = 2.0 * pixels - 1.0
        return DecoderOutput(sample=images) if return_dict else (images,)
