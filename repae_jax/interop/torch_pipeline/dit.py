"""DiT (arXiv 2212.09748), with the frequencies of the time that its authors' code has."""

from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from repae_jax.interop.torch_pipeline.layers import (
    Block,
    Denoiser,
    FinalLayer,
    LabelEmbedder,
    TimeEmbedder,
    image_of,
    patch_embedding,
    tokens_of,
)


class RepaeDiT(Denoiser, ConfigMixin):
    """Predicts the noise, and with `learn_sigma` behind it the fraction of its variance."""

    @register_to_config
    def __init__(
        self,
        latent_size: int = 32,
        latent_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        learn_sigma: bool = True,
        num_classes: int = 1000,
        null_class: bool = True,
        statistics_by_position: bool = False,
    ):
        super().__init__()
        grid = latent_size // patch_size
        self.x_embedder = patch_embedding(latent_channels, hidden_size, patch_size)
        self.t_embedder = TimeEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes + null_class, hidden_size)
        self.table("pos_embed", grid**2, hidden_size)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_ratio, qk_norm) for _ in range(depth)
        )
        features = patch_size**2 * latent_channels * (2 if learn_sigma else 1)
        self.final_layer = FinalLayer(hidden_size, features)
        self.make_statistics(latent_channels, statistics_by_position, latent_size)

    def forward(self, x, t, class_labels):
        """Latents (B, c, h, w), times (B,) in [0, 1], labels (B,) -> (B, c or 2 c, h, w)."""
        h = tokens_of(self.x_embedder, x)
        h = h + self.pos_embed.to(h.dtype)
        step = (t.float() * 1000).round().clamp(0, 999)
        condition = self.t_embedder(step) + self.y_embedder(class_labels)
        for block in self.blocks:
            h = block(h, condition)
        patches, _ = self.final_layer(h, condition)
        return image_of(patches, self.config.latent_size, self.config.patch_size)
