"""PatchGAN in PyTorch."""

import torch
from torch import nn


class TorchDiscriminator(nn.Module):
    """Every weight and statistic random."""

    def __init__(self, layers, filters):
        super().__init__()
        parts = [nn.Conv2d(3, filters, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = filters
        for i in range(1, layers + 1):
            new, stride = filters * min(2**i, 8), 2 if i < layers else 1
            parts += [nn.Conv2d(width, new, 4, stride, 1, bias=False), nn.BatchNorm2d(new)]
            parts += [nn.LeakyReLU(0.2)]
            width = new
        self.main = nn.Sequential(*parts, nn.Conv2d(width, 1, 4, 1, 1))
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point():
                scale = 0.3 if "running" in name else 0.2
                positive = name.endswith("running_var") or tensor.ndim == 1
                tensor.copy_(torch.randn(tensor.shape) * scale)
                if positive:
                    tensor.copy_(1.0 + tensor.clamp(-0.5, 0.5))

    def forward(self, x):
        """(B, H, W, 3) -> logits (B, h, w, 1)."""
        return self.main(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
