"""The table of backbones; `config.backbone.family` names one of them."""

from repae_jax.models.backbones import ddt, dit, fuse_dit, jit, lightningdit, mmdit, sit

BACKBONES = {
    "sit": sit.FAMILY,
    "lightningdit": lightningdit.FAMILY,
    "dit": dit.FAMILY,
    "ditdh": ddt.DITDH_FAMILY,
    "ddt": ddt.DDT_FAMILY,
    "jit": jit.FAMILY,
    "fusedit": fuse_dit.FAMILY,
    "mmdit": mmdit.FAMILY,
}
