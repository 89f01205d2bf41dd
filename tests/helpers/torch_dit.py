"""A DiT in torch: the tests' SiT with a variance at its end (arXiv 2212.09748)."""

import torch_sit


class TorchDiT(torch_sit.SiT):
    """The tests' SiT with twice the channels at its end, and no heads."""

    def __init__(self, input_size, in_channels, **config):
        super().__init__(latent_size=input_size, latent_channels=in_channels, **config)
        features = self.patch_size**2 * 2 * in_channels
        self.final_layer = torch_sit.FinalLayer(config["hidden_size"], features)
        del self.bn

    def forward(self, x, t, labels):
        return super().forward(x, t.float(), labels)[0]


def make_dit(**config):
    """A DiT with a fixed position table."""
    model = TorchDiT(**config, encoder_depth=1)
    model.pos_embed.requires_grad = False
    return model
