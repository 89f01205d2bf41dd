"""diffusion-bench's DDT (arXiv 2504.05741): time and condition are tokens of its encoder."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn
from torch.nn import functional

from repae_jax.interop.torch_pipeline.layers import (
    Attention,
    Denoiser,
    FourierTimeEmbedder,
    LabelEmbedder,
    RMSNorm,
    SwiGLU,
    fed,
    image_of,
    modulated,
    patch_embedding,
    text_norm,
    tokens_of,
)


class SplitBlock(nn.Module):
    """A block with layers of their own for queries, keys, values and both halves of SwiGLU."""

    def __init__(self, width, heads, mlp_ratio, grid, conditioned):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = Attention(width, heads, True, True, grid, split=True)
        self.mlp = SwiGLU(width, int(2 / 3 * int(width * mlp_ratio)), split=True)
        if conditioned:
            self.adaln_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, condition=None, mask=None):
        """x (B, N, D), condition (B, N, D) -> (B, N, D)."""
        if condition is None:
            x = x + self.attn(self.norm1(x), mask)
            return x + self.mlp(self.norm2(x))
        parts = self.adaln_modulation(condition).chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        x = x + gate_a * self.attn(modulated(self.norm1(x), shift_a, scale_a))
        return x + gate_m * self.mlp(modulated(self.norm2(x), shift_m, scale_m))


class SplitFinal(nn.Module):
    """A modulated norm and a linear layer; a class token has a layer of its own."""

    def __init__(self, width, features, class_token_dim):
        super().__init__()
        self.norm = RMSNorm(width)
        self.linear = nn.Linear(width, features)
        self.adaln_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        if class_token_dim:
            self.cls_linear = nn.Linear(width, class_token_dim)

    def forward(self, x, condition):
        """The patches (B, N, features), and the class token, the last of the tokens, or None."""
        shift, scale = self.adaln_modulation(condition).chunk(2, dim=-1)
        x = modulated(self.norm(x), shift, scale)
        if not hasattr(self, "cls_linear"):
            return self.linear(x), None
        return self.linear(x[:, :-1]), self.cls_linear(x[:, -1])


class TextEmbedder(nn.Module):
    """A norm of a text's states, and a linear layer."""

    def __init__(self, text_width, width, embedding):
        super().__init__()
        if (norm := text_norm(text_width, embedding)) is not None:
            self.norm = norm
        self.proj = nn.Linear(text_width, width)

    def forward(self, states):
        """(B, L, C) -> (B, L, D)."""
        states = states.to(self.proj.weight.dtype)
        return self.proj(self.norm(states) if hasattr(self, "norm") else states)


class RepaeDDT(Denoiser, ConfigMixin):
    """Predicts the velocity of latents, and that of a class token beside them.

    Of a model of text, `text_width` is the width of the encoder's states. With `predicts_data` the
    network inside predicts the data.
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
        head_size: int = 2048,
        head_depth: int = 2,
        head_heads: int = 16,
        mlp_ratio: float = 4.0,
        time_tokens: int = 4,
        class_tokens: int = 8,
        predicts_data: bool = False,
        least_time: float = 0.05,
        num_classes: int = 1000,
        null_class: bool = True,
        text_width: int = 0,
        text_embedding: str = "rms_norm",
        class_token_dim: int = 0,
        statistics_by_position: bool = False,
    ):
        super().__init__()
        grid = latent_size // patch_size
        self.s_embedder = patch_embedding(latent_channels, hidden_size, patch_size)
        self.x_embedder = patch_embedding(latent_channels, head_size, patch_size)
        if head_size != hidden_size:
            self.s_projector = nn.Linear(hidden_size, head_size)
        self.t_embedder = FourierTimeEmbedder(hidden_size, time_tokens)
        if text_width:
            self.ctx_embedder = TextEmbedder(text_width, hidden_size, text_embedding)
        else:
            self.ctx_embedder = LabelEmbedder(num_classes + null_class, hidden_size, class_tokens)
        self.blocks = nn.ModuleList(
            [SplitBlock(hidden_size, num_heads, mlp_ratio, grid, False) for _ in range(depth)]
            + [SplitBlock(head_size, head_heads, mlp_ratio, grid, True) for _ in range(head_depth)]
        )
        features = patch_size**2 * latent_channels
        self.final_layer = SplitFinal(head_size, features, class_token_dim)
        if class_token_dim:
            for part, width in (("enc", hidden_size), ("dec", head_size)):
                setattr(self, f"cls_in_proj_{part}", nn.Linear(class_token_dim, width))
                setattr(self, f"cls_in_norm_{part}", RMSNorm(width))
        self.make_statistics(latent_channels, statistics_by_position, latent_size)

    def forward(self, x, t, class_labels=None, text=None, mask=None, class_token=None):
        """Latents (B, c, h, w), times (B,), and a condition -> the velocity.

        The condition is labels (B,), or states of a text (B, L, C) with a mask (B, L). With a class
        token (B, D), the result is the pair of both velocities.
        """
        time, depth = self.t_embedder(t)[:, None], self.config.depth
        s, keys = self._sequence(x, time, class_labels, text, mask, class_token)
        for block in self.blocks[:depth]:
            s = block(s, mask=keys)
        h = tokens_of(self.x_embedder, x)
        if class_token is not None:
            token = self.cls_in_norm_dec(fed(self.cls_in_proj_dec, class_token))
            h = torch.cat([h, token[:, None]], dim=1)
        s = functional.silu(time + s[:, : h.shape[1]])
        if hasattr(self, "s_projector"):
            s = self.s_projector(s)
        for block in self.blocks[depth:]:
            h = block(h, s)
        patches, token = self.final_layer(h, s)
        found = image_of(patches, self.config.latent_size, self.config.patch_size)
        if self.config.predicts_data:
            least = t.float().clamp(min=self.config.least_time)[:, None, None, None]
            found = (x.float() - found.float()) / least
        return found if token is None else (found, token)

    def _sequence(self, x, time, class_labels, text, mask, class_token):
        """The encoder's tokens, and the mask of its keys; None without padding."""
        tokens = [tokens_of(self.s_embedder, x)]
        if class_token is not None:
            token = self.cls_in_norm_enc(fed(self.cls_in_proj_enc, class_token))
            tokens.append(token[:, None])
        tokens.append(self.t_embedder.learnable_tokens + time)
        if not self.config.text_width:
            label = self.ctx_embedder(class_labels)[:, None]
            return torch.cat([*tokens, self.ctx_embedder.learnable_tokens + label], dim=1), None
        before = sum(part.shape[1] for part in tokens)
        keys = functional.pad(mask, (before, 0), value=True)[:, None, None]
        return torch.cat([*tokens, self.ctx_embedder(text)], dim=1), keys
