"""The metrics of a step by name: their order, their curves, and the mark of a collapse."""

from typing import NamedTuple


class Metric(NamedTuple):
    """How a metric is watched and drawn.

    Attributes:
      panel: the title of its panel among a report's curves; "" draws none.
      collapsed: the fraction of its first values below which it has collapsed; 0 for no such mark.
    """

    panel: str = ""
    collapsed: float = 0.0


# In causal order: a value that is not finite makes those behind it so.
METRICS = {
    "latent_std": Metric(collapsed=0.1),
    "reconstruction_loss": Metric("Reconstruction"),
    "perceptual_loss": Metric("Reconstruction"),
    "kl_loss": Metric(),
    "gan_loss": Metric("Discriminator"),
    "weighted_gan_loss": Metric(),
    "vae_align_loss": Metric("Alignment"),
    "vae_loss": Metric(),
    "logits_real": Metric("Logits"),
    "logits_fake": Metric("Logits"),
    "lecam_loss": Metric(),
    "d_loss": Metric("Discriminator"),
    "denoising_loss": Metric("Backbone"),
    "proj_loss": Metric("Alignment"),
    "sit_loss": Metric("Backbone"),
    "grad_norm_vae": Metric("Gradient norms", collapsed=1e-3),
    "grad_norm_disc": Metric("Gradient norms", collapsed=1e-3),
    "grad_norm_sit": Metric("Gradient norms", collapsed=1e-3),
}
# The panels in the order of a report.
PANELS = ("Backbone", "Alignment", "Reconstruction", "Discriminator", "Logits", "Gradient norms")
CURVES = {
    panel: tuple(name for name, metric in METRICS.items() if metric.panel == panel)
    for panel in PANELS
}
