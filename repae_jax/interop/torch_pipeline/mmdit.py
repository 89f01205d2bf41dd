"""REPA's MMDiT (arXiv 2403.03206): image and text are two streams that attend jointly."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn
from torch.nn import functional

from repae_jax.interop.torch_pipeline.layers import (
    MLP,
    Denoiser,
    FinalLayer,
    TimeEmbedder,
    image_of,
    modulated,
    patch_embedding,
    plain_norm,
    text_norm,
    tokens_of,
)


class Stream(nn.Module):
    """The layers of one stream in a block; of the last block's text, those before the attention."""

    def __init__(self, width, heads, hidden, last):
        super().__init__()
        self.heads, self.width = heads, width
        self.norm1 = plain_norm(width, False)
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(width, 3 * width)
        if not last:
            self.attn.proj = nn.Linear(width, width)
            self.norm2 = plain_norm(width, False)
            self.mlp = MLP(width, hidden)
        parts = 2 if last else 6
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))

    def modulation(self, time):
        """(B, D) -> 2 or 6 vectors (B, 1, D)."""
        return self.adaLN_modulation(time)[:, None].split(self.width, dim=-1)

    def before(self, x, shift, scale):
        """(B, N, D) -> queries, keys and values, (3, B, heads, N, d)."""
        qkv = self.attn.qkv(modulated(self.norm1(x), shift, scale))
        return qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def after(self, x, attended, gate_a, shift, scale, gate_m):
        """x and what it attended to, (B, N, D) each -> (B, N, D)."""
        x = x + gate_a * self.attn.proj(attended)
        return x + gate_m * self.mlp(modulated(self.norm2(x), shift, scale))


class JointBlock(nn.Module):
    """Both streams attend to both."""

    def __init__(self, width, heads, hidden, last):
        super().__init__()
        self.last = last
        self.context_block = Stream(width, heads, hidden, last)
        self.x_block = Stream(width, heads, hidden, False)

    def forward(self, context, x, time):
        """(B, L, D) and (B, N, D) -> the same; the last block leaves the text as it was."""
        of_context, of_x = self.context_block.modulation(time), self.x_block.modulation(time)
        both = [
            self.context_block.before(context, *of_context[:2]),
            self.x_block.before(x, *of_x[:2]),
        ]
        q, k, v = torch.cat(both, dim=3)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        length = context.shape[1]
        x = self.x_block.after(x, attended[:, length:], *of_x[2:])
        if not self.last:
            context = self.context_block.after(context, attended[:, :length], *of_context[2:])
        return context, x


class RepaeMMDiT(Denoiser, ConfigMixin):
    """Predicts the velocity of latents; all states of the text take part, those of padding too."""

    @register_to_config
    def __init__(
        self,
        latent_size: int = 32,
        latent_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 768,
        depth: int = 24,
        num_heads: int = 24,
        mlp_ratio: float = 4.0,
        text_width: int = 768,
        text_embedding: str = "linear",
        statistics_by_position: bool = False,
    ):
        super().__init__()
        grid, hidden = latent_size // patch_size, int(hidden_size * mlp_ratio)
        self.x_embedder = patch_embedding(latent_channels, hidden_size, patch_size)
        self.t_embedder = TimeEmbedder(hidden_size)
        if (norm := text_norm(text_width, text_embedding)) is not None:
            self.context_norm = norm
        self.context_embedder = nn.Linear(text_width, hidden_size)
        self.table("pos_embed", grid**2, hidden_size)
        self.joint_blocks = nn.ModuleList(
            JointBlock(hidden_size, num_heads, hidden, number == depth - 1)
            for number in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * latent_channels)
        self.make_statistics(latent_channels, statistics_by_position, latent_size)

    def forward(self, x, t, text, mask=None):
        """Latents (B, c, h, w), times (B,), text (B, L, C) -> the velocity; no mask is read."""
        h = tokens_of(self.x_embedder, x)
        h = h + self.pos_embed.to(h.dtype)
        time, text = self.t_embedder(t), text.to(h.dtype)
        if hasattr(self, "context_norm"):
            text = self.context_norm(text)
        context = self.context_embedder(text)
        for block in self.joint_blocks:
            context, h = block(context, h, time)
        patches, _ = self.final_layer(h, time)
        return image_of(patches, self.config.latent_size, self.config.patch_size)
