"""The table of conditioners; `config.condition.family` names one of them."""

from repae_jax.models.conditioning import class_label

CONDITIONERS = {"class": class_label.FAMILY}
