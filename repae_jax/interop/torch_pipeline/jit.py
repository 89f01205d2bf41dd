"""JiT (arXiv 2511.13720): large patches of pixels, and the clean image as the prediction."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from repae_jax.interop.torch_pipeline.layers import (
    Block,
    Denoiser,
    FinalLayer,
    LabelEmbedder,
    TimeEmbedder,
    fed,
    image_of,
)


class RepaeJiT(Denoiser, ConfigMixin):
    """Predicts the data x inside, and returns the velocity (x_t - x) / max(t, least_time)."""

    @register_to_config
    def __init__(
        self,
        latent_size: int = 256,
        latent_channels: int = 3,
        patch_size: int = 16,
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        bottleneck: int = 128,
        context_tokens: int = 32,
        context_start: int = 4,
        least_time: float = 0.05,
        num_classes: int = 1000,
        null_class: bool = True,
        statistics_by_position: bool = False,
    ):
        super().__init__()
        grid = latent_size // patch_size
        self.table("pos_embed", grid**2, hidden_size)
        if context_tokens:
            self.in_context_posemb = nn.Parameter(torch.zeros(1, context_tokens, hidden_size))
        self.t_embedder = TimeEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes + null_class, hidden_size)
        self.x_embedder = nn.Module()
        self.x_embedder.proj1 = nn.Conv2d(
            latent_channels, bottleneck, patch_size, patch_size, bias=False
        )
        self.x_embedder.proj2 = nn.Conv2d(bottleneck, hidden_size, 1)
        options = dict(qk_norm=True, grid=grid, swiglu=True, rms=True)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_ratio, **options) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * latent_channels, rms=True)
        self.make_statistics(latent_channels, statistics_by_position, latent_size)

    def forward(self, x, t, class_labels):
        """Latents (B, c, h, w), times (B,), labels (B,) -> the velocity."""
        h = self.x_embedder.proj2(fed(self.x_embedder.proj1, x)).flatten(2).transpose(1, 2)
        h = h + self.pos_embed.to(h.dtype)
        patches, label = h.shape[1], self.y_embedder(class_labels)
        condition = self.t_embedder(1.0 - t) + label
        for number, block in enumerate(self.blocks):
            if self.config.context_tokens and number == self.config.context_start:
                h = torch.cat([h, label[:, None] + self.in_context_posemb], dim=1)
            h = block(h, condition)
        h, _ = self.final_layer(h[:, :patches], condition)
        data = image_of(h, self.config.latent_size, self.config.patch_size).float()
        return (x.float() - data) / t.float().clamp(min=self.config.least_time)[:, None, None, None]
