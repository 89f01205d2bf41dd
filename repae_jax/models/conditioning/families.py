"""The table of conditioners; `config.condition.family` names one of them."""

from repae_jax.models.conditioning import class_label, text

CONDITIONERS = {"class": class_label.FAMILY, "text": text.FAMILY}
