"""Recipes: the networks that a run trains, and the paper's ablations."""

from ml_collections import ConfigDict

from repae_jax.config.versions import RENAMED_RECIPES
from repae_jax.errors import UserError

RECIPES = {
    "repae": "the tokenizer and the backbone jointly (REPA-E)",
    "repa": "the backbone with alignment, on a frozen tokenizer (REPA)",
    "vanilla": "the backbone without alignment, on a frozen tokenizer",
    "vae": "the tokenizer alone, with its discriminator",
    "vavae": "the tokenizer alone, with its discriminator and VF loss (VA-VAE)",
    "lsgm": "jointly; the tokenizer by LSGM's KL from the backbone as prior, not by L_REPA",
    "repae_no_stop_gradient": "ablation: the backbone's whole loss trains the tokenizer as well",
    "repae_no_latent_norm": "ablation: fixed latent statistics in place of LatentNorm",
    "repae_no_regularisation": "ablation: L_REG = 0, the tokenizer learns from the alignment alone",
}


def apply_recipe(config: ConfigDict, recipe: str) -> ConfigDict:
    """Turn a REPA-E configuration into that of a recipe (a key of `RECIPES`), in place.

    Returns the same configuration.

    Raises:
      UserError: there is no such recipe.
    """
    if recipe not in RECIPES:
        choices = "; ".join(f"{name}: {what}" for name, what in RECIPES.items())
        if recipe in RENAMED_RECIPES:
            raise UserError(f"the recipe {recipe!r} is now {RENAMED_RECIPES[recipe]!r}")
        raise UserError(f"no recipe {recipe!r}; choose from {choices}")
    if recipe in ("repa", "vanilla"):
        config.train = ("backbone",)
        config.objective.latent_norm = "fixed"
        config.tokenizer_ema_decay = 0.0
    if recipe == "vanilla":
        config.teachers = ConfigDict()
        if config.backbone.get("class_token_dim"):  # a teacher would give it
            config.backbone.class_token_dim = 0
        config.evaluation.cknna_images = 0
    if recipe in ("vae", "vavae"):
        config.train = tuple(name for name in config.train if name != "backbone")
        config.text_encoder = _no_text_encoder()
        config.evaluation.every = 0
    if recipe == "vae":
        config.teachers = ConfigDict()
    if recipe == "vavae":
        config.objective.update(vf_weight=0.1, spatial_norm=0.0)
    if recipe == "lsgm":  # the KL divergence keeps its weight; N(0, 1) gives way to the backbone
        objective = config.objective
        objective.update(
            prior_weight=objective.kl_weight, kl_weight=0.0, tokenizer_alignment=0.0,
            posterior="sample",
            prior_least_time=max(objective.prior_least_time, objective.least_time),
        )  # fmt: skip
    if recipe == "repae_no_stop_gradient":
        config.objective.stop_gradient = False
    if recipe == "repae_no_latent_norm":
        config.objective.latent_norm = "fixed"
    if recipe == "repae_no_regularisation":
        for term in ("reconstruction", "perceptual", "kl", "adversarial"):
            config.objective[f"{term}_weight"] = 0.0
    config.name = f"{config.name}_{recipe}" if recipe != "repae" else config.name
    return config


def _no_text_encoder():
    from repae_jax.config.defaults import text_encoder  # imports JAX, which `--help` does without

    return text_encoder()
