"""The table of encoders; the `family` of an entry of `config.teachers` names one of them.

The loader under the family's name in runs/weights.py reads published weights. A family without a
loader takes the weights that `pretrain-teacher` makes.
"""

from repae_jax.models.encoders import vit

ENCODERS = {"vit": vit.FAMILY}
