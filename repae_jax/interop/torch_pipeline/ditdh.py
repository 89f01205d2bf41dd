"""RAE's DiT^DH (arXiv 2510.11690): a LightningDiT that encodes, and a wider head."""

from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn
from torch.nn import functional

from repae_jax.interop.torch_pipeline.layers import (
    Block,
    Denoiser,
    FinalLayer,
    FourierTimeEmbedder,
    LabelEmbedder,
    image_of,
    patch_embedding,
    tokens_of,
)


class RepaeDiTDH(Denoiser, ConfigMixin):
    """Predicts the velocity of latents; the encoder's tokens modulate the head."""

    @register_to_config
    def __init__(
        self,
        latent_size: int = 16,
        latent_channels: int = 768,
        patch_size: int = 1,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        head_size: int = 2048,
        head_depth: int = 2,
        head_heads: int = 16,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        rotary: bool = True,
        swiglu: bool = True,
        rms_norm: bool = True,
        shift: bool = True,
        num_classes: int = 1000,
        null_class: bool = True,
        statistics_by_position: bool = False,
    ):
        super().__init__()
        grid = latent_size // patch_size
        self.table("pos_embed", grid**2, hidden_size)
        self.x_embedder = patch_embedding(latent_channels, head_size, patch_size)
        self.s_embedder = patch_embedding(latent_channels, hidden_size, patch_size)
        if head_size != hidden_size:
            self.s_projector = nn.Linear(hidden_size, head_size)
        self.t_embedder = FourierTimeEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes + null_class, hidden_size)
        self.final_layer = FinalLayer(head_size, patch_size**2 * latent_channels, rms_norm)
        options = (mlp_ratio, qk_norm, grid if rotary else 0, swiglu, rms_norm, shift)
        self.blocks = nn.ModuleList(
            [Block(hidden_size, num_heads, *options) for _ in range(depth)]
            + [Block(head_size, head_heads, *options) for _ in range(head_depth)]
        )
        self.make_statistics(latent_channels, statistics_by_position, latent_size)

    def forward(self, x, t, class_labels):
        """Latents (B, c, h, w), times (B,), labels (B,) -> the velocity."""
        time, depth = self.t_embedder(t), self.config.depth
        condition = functional.silu(time + self.y_embedder(class_labels))
        s = tokens_of(self.s_embedder, x)
        s = s + self.pos_embed.to(s.dtype)
        for block in self.blocks[:depth]:
            s = block(s, condition)
        s = functional.silu(time[:, None] + s)
        if hasattr(self, "s_projector"):
            s = self.s_projector(s)
        h = tokens_of(self.x_embedder, x)
        for block in self.blocks[depth:]:
            h = block(h, s)
        patches, _ = self.final_layer(h, s)
        return image_of(patches, self.config.latent_size, self.config.patch_size)
