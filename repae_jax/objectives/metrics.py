"""The table of a step's metrics: their order, their curves, and their thresholds of collapse."""

from typing import NamedTuple


class Metric(NamedTuple):
    """A metric's panel in reports, and its threshold in the monitor.

    Attributes:
      panel: the title of its panel among a report's curves; "" for no curve.
      collapsed: the metric has collapsed below this fraction of its first values; 0 for no
        threshold.
    """

    panel: str = ""
    collapsed: float = 0.0


# In causal order: a NaN or infinite value spreads to the metrics after it.
METRICS = {
    "latent_std": Metric(collapsed=0.1),
    "reconstruction_loss": Metric("Reconstruction"),
    "perceptual_loss": Metric("Reconstruction"),
    "kl_loss": Metric(),
    "prior_loss": Metric("Alignment"),
    "gan_loss": Metric("Discriminator"),
    "adaptive_weight": Metric(),
    "weighted_gan_loss": Metric(),
    "vf_distance_loss": Metric("Alignment"),
    "vf_cosine_loss": Metric("Alignment"),
    "vf_adaptive_weight": Metric(),
    "weighted_vf_loss": Metric(),
    "vae_align_loss": Metric("Alignment"),
    "vae_loss": Metric(),
    "logits_real": Metric("Logits"),
    "logits_fake": Metric("Logits"),
    "lecam_loss": Metric(),
    "d_loss": Metric("Discriminator"),
    "denoising_loss": Metric("Backbone"),
    "cosine_loss": Metric("Backbone"),
    "vlb_loss": Metric("Backbone"),
    "dispersive_loss": Metric("Alignment"),
    "proj_loss": Metric("Alignment"),
    "class_token_loss": Metric("Backbone"),
    "sit_loss": Metric("Backbone"),
    "grad_norm_vae": Metric("Gradient norms", collapsed=1e-3),
    "grad_norm_vf": Metric("Gradient norms", collapsed=1e-3),
    "grad_norm_disc": Metric("Gradient norms", collapsed=1e-3),
    "grad_norm_sit": Metric("Gradient norms", collapsed=1e-3),
}
# The panels in the order of a report, and what they show.
PANELS = {
    "Backbone": "denoising_loss is the squared error of the backbone's prediction",
    "Alignment": "proj_loss is minus the cosine between the backbone's projected tokens and the "
    "teacher's, and vae_align_loss the same for the gradient that tunes the VAE",
    "Reconstruction": "reconstruction_loss compares pixels, perceptual_loss the features of LPIPS",
    "Discriminator": "d_loss is the discriminator's, gan_loss the VAE's against it",
    "Logits": "the discriminator's outputs for real and for reconstructed images",
    "Gradient norms": "of each network, before clipping",
}
CURVES = {
    panel: tuple(name for name, metric in METRICS.items() if metric.panel == panel)
    for panel in PANELS
}
