"""LightningDiT (arXiv 2501.01423): rotary positions, SwiGLU and RMSNorm, each an option."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from repae_jax.interop.torch_pipeline.layers import (
    Block,
    Denoiser,
    FinalLayer,
    LabelEmbedder,
    RMSNorm,
    TimeEmbedder,
    fed,
    image_of,
    patch_embedding,
    tokens_of,
)


class RepaeLightningDiT(Denoiser, ConfigMixin):
    """Predicts the velocity of latents, and that of a class token beside them.

    The network inside sees the time 1 - t and predicts the velocity of that direction.
    """

    @register_to_config
    def __init__(
        self,
        latent_size: int = 16,
        latent_channels: int = 32,
        patch_size: int = 1,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        rotary: bool = True,
        swiglu: bool = True,
        rms_norm: bool = True,
        shift: bool = True,
        num_classes: int = 1000,
        null_class: bool = True,
        class_token_dim: int = 0,
        statistics_by_position: bool = False,
    ):
        super().__init__()
        grid = latent_size // patch_size
        self.x_embedder = patch_embedding(latent_channels, hidden_size, patch_size)
        self.t_embedder = TimeEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes + null_class, hidden_size)
        self.table("pos_embed", grid**2, hidden_size)
        turned = grid if rotary else 0
        options = (mlp_ratio, qk_norm, turned, swiglu, rms_norm, shift)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, *options) for _ in range(depth))
        features = patch_size**2 * latent_channels
        self.final_layer = FinalLayer(hidden_size, features, rms_norm, class_token_dim)
        if class_token_dim:
            self.cls_projectors2 = nn.Linear(class_token_dim, hidden_size)
            make = RMSNorm if rms_norm else nn.LayerNorm
            self.wg_norm = make(hidden_size, **({} if rms_norm else {"eps": 1e-6}))
        self.make_statistics(latent_channels, statistics_by_position, latent_size)

    def forward(self, x, t, class_labels, class_token=None):
        """Latents (B, c, h, w), times (B,), labels (B,) -> the velocity.

        With a class token (B, D), the pair of both velocities.
        """
        h = tokens_of(self.x_embedder, x)
        h = h + self.pos_embed.to(h.dtype)
        if self.config.class_token_dim:
            token = self.wg_norm(fed(self.cls_projectors2, class_token))[:, None]
            h = torch.cat([h, token], dim=1)
        condition = self.t_embedder(1.0 - t) + self.y_embedder(class_labels)
        for block in self.blocks:
            h = block(h, condition)
        patches, class_token = self.final_layer(h, condition)
        velocity = -image_of(patches, self.config.latent_size, self.config.patch_size)
        return velocity if class_token is None else (velocity, -class_token)
