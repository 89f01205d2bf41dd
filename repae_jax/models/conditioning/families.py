"""The kinds of condition that `config.condition.family` chooses from."""

from repae_jax.models.conditioning import class_label

CONDITIONERS = {"class": class_label.FAMILY}
