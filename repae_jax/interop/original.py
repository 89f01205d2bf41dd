"""The parts of the originals' training checkpoints, converted to and from our variables.

model, ema                     the SiT with its projection heads and BatchNorm
vae, discriminator             REPA-E only; stage two and REPA train the SiT alone
opt, opt_vae, opt_disc         one AdamW per network
args, steps                    argparse.Namespace, int

DiT's hold model, ema, opt and args, LightningDiT's config in place of args. RAE's and
diffusion-bench's hold model, ema, optimizer, scheduler, step and epoch.
JiT's have other keys too (interop/jit.py), and so have fuse-dit's, which are folders
(interop/fuse_dit_folder.py). REPA's text-to-image code keeps an MMDiT under REPA's keys.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import (
    autoencoder_kl,
    ddt,
    discriminator,
    fuse_dit,
    jit,
    lightningdit,
    mmdit,
    sit,
    tables,
)
from repae_jax.interop.adamw import AdamState, read_adamw, write_adamw
from repae_jax.interop.tables import Rule
from repae_jax.models.backbones.base import headless_shapes
from repae_jax.models.backbones.ddt import DDT, Decoupled
from repae_jax.models.backbones.dit import DiT
from repae_jax.models.backbones.fuse_dit import FuseDiT
from repae_jax.models.backbones.jit import JiT
from repae_jax.models.backbones.lightningdit import LightningDiT
from repae_jax.models.backbones.mmdit import MMDiT
from repae_jax.models.backbones.sit import SiT
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes

# "repae": from train_repae.py. "ldm": from train_ldm_only.py, on a frozen VAE. "repa": from REPA's
# own code, whose SiT has no BatchNorm. "lightningdit": from LightningDiT's code.
# "dit": from DiT's. "ditdh": from RAE's. "ddt": from diffusion-bench's.
# "jit": from JiT's. "fuse-dit": from fuse-dit's. "mmdit": from REPA's text-to-image code.
Kind = Literal[
    "repae", "ldm", "repa", "lightningdit", "dit", "ditdh", "ddt", "jit", "fuse-dit", "mmdit"
]  # fmt: skip

# role -> the part of a checkpoint with its weights, and the part with its optimizer's state
WEIGHTS = {"backbone": "model", "tokenizer": "vae", "discriminator": "discriminator"}
OPTIMIZERS = {"backbone": "opt", "tokenizer": "opt_vae", "discriminator": "opt_disc"}
_COLLECTIONS = ("params", "constants", "batch_stats")
LPIPS_TENSORS = 31  # frozen, but numbered among the parameters of the discriminator's optimizer


@dataclasses.dataclass(frozen=True)
class Part:
    """One trained network of a checkpoint: its table and what its state dict holds.

    Attributes:
      rules: from the original's names to paths in the network's variables.
      shapes: {original name: shape} of its state dict, in order, without counters.
      counters: the names of PyTorch's counters of BatchNorm updates.
      slots: the name of each parameter that its optimizer numbers; None for a parameter of another
        network.
      trained: {original name: shape} of the parameters that train here.
      undecayed: the first slots, which are a group without weight decay of its optimizer.
      tables: {original name: array} of its state dict's tables, which its dimensions determine.
      fused: the layers here that join some of the rules', see `tables.fuse`.
      check: (the state dict's tensors, their source) raises UserError for values that no network
        here has.
    """

    rules: Sequence[Rule]
    shapes: Mapping[str, tuple[int, ...]]
    counters: Sequence[str]
    slots: Sequence[str | None]
    trained: Mapping[str, tuple[int, ...]]
    undecayed: int = 0
    tables: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fused: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    check: Callable[[Mapping[str, np.ndarray], str], None] = lambda tensors, source: None


def sit_part(model: SiT, *, statistics: bool = True) -> Part:
    """The SiT as a `Part`; `statistics`: with its BatchNorm, which REPA's own SiT lacks."""
    rules = sit.sit_rules(model.patch_size, class_token=model.class_token_dim > 0)
    shapes = _their_shapes(rules, sit.sit_shapes(model, statistics=statistics))
    slots = [name for name in shapes if not name.startswith("bn.")]
    trained = {name: shapes[name] for name in slots if name != "pos_embed"}
    counters = (sit.BATCH_COUNT,) if statistics else ()
    check = sit.check_class_position if model.class_token_dim else Part.check
    return Part(rules, shapes, counters, slots, trained, check=check)


def lightningdit_part(model: LightningDiT) -> Part:
    """The LightningDiT as a `Part`.

    Raises:
      UserError: it denoises a class token, for which LightningDiT's files have no names.
    """
    if model.class_token_dim:
        raise UserError(
            f"config.backbone.class_token_dim is {model.class_token_dim}, but LightningDiT's files "
            "hold no class token: keep such a run in its own work directory"
        )
    rules = lightningdit.lightningdit_rules(model.patch_size)
    shapes = _their_shapes(rules, headless_shapes(model))
    trained = {name: shape for name, shape in shapes.items() if name != "pos_embed"}
    tables = lightningdit.rotary_tables(model)
    return Part(rules, shapes, (), list(shapes), trained, tables=tables)


def dit_part(model: DiT) -> Part:
    """The DiT as a `Part`: the SiT's names without heads and BatchNorm."""
    rules = sit.sit_rules(model.patch_size)
    shapes = _their_shapes(rules, headless_shapes(model))
    trained = {name: shape for name, shape in shapes.items() if name != "pos_embed"}
    return Part(rules, shapes, (), list(shapes), trained)


def ddt_part(model: Decoupled) -> Part:
    """The DiT^DH or the DDT as a `Part`; all its parameters train, the position table too.

    The rotary tables of a text-to-image DDT are those of its condition's length.
    """
    fused = ddt.FUSED if isinstance(model, DDT) else {}
    rules = (ddt.ddt_rules if fused else ddt.ditdh_rules)(model.patch_size)
    shapes = _their_shapes(rules, headless_shapes(model), fused)
    rotary = ddt.rotary_tables(model)
    return Part(rules, shapes, (), list(shapes), shapes, tables=rotary, fused=fused)


def jit_part(model: JiT) -> Part:
    """The JiT as a `Part`; its optimizer does not number the position table."""
    rules = jit.jit_rules(model.patch_size)
    shapes = _their_shapes(rules, headless_shapes(model))
    vectors, others = jit.optimizer_order(shapes)
    trained = {name: shape for name, shape in shapes.items() if name != "pos_embed"}
    return Part(rules, shapes, (), [*vectors, *others], trained, undecayed=len(vectors))


def fuse_dit_part(model: FuseDiT) -> Part:
    """The text-to-image DiT of fuse-dit as a `Part`; its position table is a buffer."""
    rules = fuse_dit.fuse_dit_rules(model.patch_size)
    shapes = _their_shapes(rules, headless_shapes(model))
    trained = {name: shape for name, shape in shapes.items() if not name.endswith("pos_embed")}
    return Part(rules, shapes, (), list(trained), trained)


def mmdit_part(model: MMDiT) -> Part:
    """The MMDiT with its projection heads as a `Part`; its position table is a buffer.

    Raises:
      UserError: its heads have another width than the original's.
    """
    mmdit.check_heads(model)
    rules = mmdit.mmdit_rules(model.patch_size)
    shapes = _their_shapes(rules, sit.sit_shapes(model, statistics=False))
    trained = {name: shape for name, shape in shapes.items() if name != "pos_embed"}
    return Part(rules, shapes, (), list(trained), trained)


def vae_part(model: AutoencoderKL) -> Part:
    """The VAE as a `Part`."""
    rules = autoencoder_kl.ldm_rules()
    shapes = _their_shapes(rules, parameter_shapes(model))
    return Part(rules, shapes, (), list(shapes), shapes)


def discriminator_part(model: PatchDiscriminator) -> Part:
    """The discriminator as a `Part`.

    Its optimizer also numbers an unused scalar before its parameters, and LPIPS after them.
    """
    rules = discriminator.discriminator_table(model.num_layers)
    shapes = _their_shapes(rules, discriminator.discriminator_shapes(model))
    trained = {name: shape for name, shape in shapes.items() if ".running_" not in name}
    slots = [None, *trained, *[None] * LPIPS_TENSORS]
    return Part(rules, shapes, discriminator.batch_counts(model), slots, trained)


def import_part(tensors: Mapping[str, np.ndarray], part: Part, *, source: str) -> dict:
    """The network's variables from a state dict; counters are left out.

    Raises:
      UserError: a tensor is missing, extra, misshapen or not finite, or a table has other values.
    """
    tensors = tables.without_tables(tensors, part.tables, source=source)
    tensors = {name: array for name, array in tensors.items() if name not in part.counters}
    tables.check(tensors, part.shapes, source=source)
    part.check(tensors, source)
    ours = tables.to_ours(part.rules, tensors, source=source)
    return tables.unflatten(tables.fuse(ours, part.fused))


def export_part(
    variables: Mapping, part: Part, counters: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The inverse of `import_part`, in the original's order."""
    tensors = tables.to_theirs(part.rules, tables.split(tables.flatten(variables), part.fused))
    ordered: dict[str, np.ndarray] = {}
    for name, array in tables.in_order(part.rules, tensors).items():
        if name.startswith("blocks.") and part.tables.keys() - ordered.keys():
            ordered |= part.tables
        ordered[name] = array
        counter = f"{name.rpartition('.')[0]}.num_batches_tracked"
        if name.endswith(".running_var") and counter in part.counters:
            ordered[counter] = counters[counter]
    return ordered


def import_moments(
    state_dict: Mapping[str, Any], part: Part, *, source: str
) -> tuple[int, dict, dict]:
    """An optimizer's (count, first moments, second moments); the moments are trees like params.

    Raises:
      UserError: the state belongs to another optimizer or another model.
    """
    adam = read_adamw(state_dict, part.slots, part.trained, source=source)
    trees = [
        tables.unflatten(
            tables.fuse(tables.to_ours(part.rules, tensors, source=source), part.fused)
        )
        for tensors in (adam.exp_avg, adam.exp_avg_sq)
    ]
    return adam.count, *(tree.get("params", tree) for tree in trees)


def export_moments(
    count: int,
    first: Mapping,
    second: Mapping,
    part: Part,
    groups: Sequence[Mapping[str, Any]],
    carried: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    """The inverse of `import_moments`; `groups` and `carried` as in `write_adamw`."""
    prefix = "params/" if part.rules[0].ours.partition("/")[0] in _COLLECTIONS else ""
    moments = [
        tables.to_theirs(part.rules, tables.split(tables.flatten(tree, prefix), part.fused))
        for tree in (first, second)
    ]
    return write_adamw(AdamState(count, *moments), part.slots, groups, carried)


def _their_shapes(rules, shapes, fused=None):
    def export(variables):
        return tables.to_theirs(rules, tables.split(tables.flatten(variables), fused or {}))

    theirs = tables.exported_shapes(export, shapes)
    return tables.in_order(rules, theirs)
