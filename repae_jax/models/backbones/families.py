"""The table of backbones; `config.backbone.family` names one of them."""

from repae_jax.models.backbones import ddt, dit, jit, lightningdit, sit

BACKBONES = {
    "sit": sit.FAMILY,
    "lightningdit": lightningdit.FAMILY,
    "dit": dit.FAMILY,
    "ditdh": ddt.DITDH_FAMILY,
    "ddt": ddt.DDT_FAMILY,
    "jit": jit.FAMILY,
}
