"""The backbones that denoise a class token, in torch, written for the tests.

REG's SiT (arXiv 2507.01467) and the DDT of diffusion-bench with REG; images are NCHW.
"""

import torch
import torch_ddt
import torch_sit
from torch import nn
from torch.nn import functional


class SiTFinal(torch_sit.FinalLayer):
    def __init__(self, dim, features, of_class):
        super().__init__(dim, features)
        modulation = self.adaLN_modulation
        del self.adaLN_modulation
        self.linear_cls = nn.Linear(dim, of_class)
        self.adaLN_modulation = modulation  # in the order of REG's parameters

    def forward(self, x, condition):
        shift, scale = self.adaLN_modulation(condition).tensor_split(2, dim=-1)
        token, *patches = torch_sit.modulated(x, shift, scale).unbind(1)
        return self.linear(torch.stack(patches, dim=1)), self.linear_cls(token)


class SiT(torch_sit.SiT):
    """velocities of latents and class token, one projection of [class token, patches] each."""

    def __init__(self, *, class_token_dim, **config):
        super().__init__(**config)
        dim, places = config["hidden_size"], self.pos_embed.shape[1] + 1
        self.pos_embed = nn.Parameter(torch.zeros(1, places, dim), requires_grad=False)
        features = self.final_layer.linear.out_features
        self.final_layer = SiTFinal(dim, features, class_token_dim)
        del self.bn
        self.cls_projectors2 = nn.Linear(class_token_dim, dim)
        self.wg_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x, t, labels, class_token):
        p, side = self.patch_size, x.shape[-1]
        patches = self.x_embedder.proj(x).flatten(2).transpose(1, 2)
        first = self.wg_norm(self.cls_projectors2(class_token))[:, None]
        h = torch.cat([first, patches], dim=1) + self.pos_embed
        condition = self.t_embedder(t) + self.y_embedder.embedding_table(labels)
        for depth, block in enumerate(self.blocks, start=1):
            h = block(h, condition)
            if depth == self.encoder_depth:
                tokens = h
        patches, token = self.final_layer(h, condition)
        patches = patches.unflatten(-1, (p * p, -1)).transpose(-1, -2).flatten(2).transpose(1, 2)
        velocity = functional.fold(patches, side, p, stride=p)
        return velocity, token, [head(tokens) for head in self.projectors]


class DDT(torch_ddt.DDT):
    """velocities of latents and class token."""

    def __init__(self, *, class_token_dim, **config):
        super().__init__(**config)
        widths, places = config["hidden_size"], config["time_tokens"] + config["class_tokens"]
        self.final_layer.cls_linear = nn.Linear(widths[1], class_token_dim)
        for rotary, more in ((self.enc_rope, places), (self.dec_rope, 0)):
            turned = slice(0, self.grid**2)
            for name, still in (("freqs_cos", torch.ones), ("freqs_sin", torch.zeros)):
                table = getattr(rotary, name)[turned]
                parts = [still(1, table.shape[1]), table, still(more, table.shape[1])]
                setattr(rotary, name, torch.cat(parts))
        for part, width in zip(("enc", "dec"), widths, strict=True):
            setattr(self, f"cls_in_proj_{part}", nn.Linear(class_token_dim, width))
            setattr(self, f"cls_in_norm_{part}", torch_ddt.RMSNorm(width))

    def forward(self, x, t, context, cls_t):
        time, label = self.t_embedder(t)[:, None], self.ctx_embedder(context)[:, None]
        s = torch.cat(
            [
                self.cls_in_norm_enc(self.cls_in_proj_enc(cls_t))[:, None],
                self.tokens(self.s_embedder, x),
                self.t_embedder.learnable_tokens + time,
                self.ctx_embedder.learnable_tokens + label,
            ],
            dim=1,
        )
        for block in self.blocks[: self.depth]:
            s = block(s, self.enc_rope)
        s = self.s_projector(functional.silu(time + s[:, : 1 + self.grid**2]))
        first = self.cls_in_norm_dec(self.cls_in_proj_dec(cls_t))[:, None]
        h = torch.cat([first, self.tokens(self.x_embedder, x)], dim=1)
        for block in self.blocks[self.depth :]:
            h = block(h, self.dec_rope, s)
        final = self.final_layer
        shift, scale = final.adaln_modulation(s).chunk(2, dim=-1)
        h = final.norm(h) * (1 + scale) + shift
        return self.image(final.linear(h[:, 1:]), x.shape[-1]), final.cls_linear(h[:, 0])
