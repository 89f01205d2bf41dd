"""Configurations: the defaults of every key, the recipes, and what follows from them.

A file in configs/ calls `base()` and changes what its experiment changes. The keys:

    seed        of initialisation, data order and draws
    train       which networks are trained: any of "backbone", "tokenizer", "discriminator"
    data        where the images come from
    tokenizer, backbone, discriminator, lpips, teachers   the networks
    projector   from the backbone's tokens to the teachers'
    condition   what steers the backbone, and how often it is dropped
    objective   coefficients and variants of the loss (models/networks.py)
    time        how the diffusion times are drawn
    optimizer   one AdamW per trained network
    mesh        the devices' axes, and what of the state is divided over them
    compute     what to recompute, loop over, or do in another way, for memory and time
    sampling    how sample grids are drawn
    evaluation  what is measured while the run trains, and how often
    run         length and intervals of the run
"""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from repae_jax.config.schema import check_values
from repae_jax.config.sections import (
    SECTIONS,
    families_of,
    section_of,
)
from repae_jax.config.versions import RENAMED_RECIPES, upgraded, versioned
from repae_jax.errors import UserError
from repae_jax.utils.schema import parse_json
from repae_jax.utils.sealed import seal, unseal_if_sealed

NETWORKS = ("backbone", "tokenizer", "discriminator")
RECIPES = {
    "repae": "the tokenizer and the backbone jointly (REPA-E)",
    "repa": "the backbone with alignment, on a frozen tokenizer (REPA)",
    "vanilla": "the backbone without alignment, on a frozen tokenizer",
    "vae": "the tokenizer alone, with its discriminator",
    "repae_no_stop_gradient": "ablation: the backbone's whole loss trains the tokenizer as well",
    "repae_no_latent_norm": "ablation: fixed latent statistics in place of LatentNorm",
    "repae_no_regularisation": "ablation: L_REG = 0, the tokenizer learns from the alignment alone",
}


def base() -> ConfigDict:
    """Every key with its default: the published REPA-E recipe, ImageNet 256 x 256."""
    adamw = dict(
        learning_rate=1e-4,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,  # inf: not clipped
        warmup_steps=0,
        decay_steps=0,  # 0: constant, as published; else a cosine to zero at that step
    )
    return ConfigDict(
        dict(
            name="",
            seed=0,
            train=NETWORKS,
            batch_size=256,
            ema_decay=0.9999,
            dtype="float32",  # of the networks' matrix products: "float32" or "bfloat16"
            data=dict(
                source="tfds",  # a key of `openers` in data/sources.py
                path="",  # of a folder; tfds: the data directory ("" = default)
                name="",  # tfds: the builder, e.g. "imagenet2012"; scenes: how many
                resolution=256,
                num_classes=1000,
                flip=False,
                exif=False,  # turn pictures as their EXIF data say; the original does not
                on_bad_image="error",  # or "skip": the next readable one takes its place
                workers=8,  # decoding processes; 0 decodes in threads
                accept="",  # data that have changed since the run began: what the refusal names
            ),
            tokenizer=tokenizer("f8d4"),
            backbone=backbone("SiT-XL/2"),
            condition=condition(),
            projector=projector(),
            latent_norm=dict(momentum=0.1),
            discriminator=dict(filters=64, layers=3, weights=""),
            lpips=dict(weights="", vgg_weights="", rescale_inputs=True),
            teachers=dict(),
            objective=dict(
                interpolant="linear",
                backbone_alignment=0.5,
                tokenizer_alignment=1.5,
                stop_gradient=True,
                latent_norm="batch",
                reconstruction="l1",
                reconstruction_weight=1.0,
                perceptual_weight=1.0,
                kl_weight=1e-6,
                adversarial_weight=0.1,
                discriminator_start=0,
                discriminator_factor=1.0,
                lecam_weight=0.0,
                lecam_decay=0.999,
            ),
            time=dict(weighting="uniform"),  # or "lognormal"
            optimizer={name: dict(adamw) for name in NETWORKS},
            mesh=dict(
                data=-1,  # devices along the axis that only the batch is divided over; -1: the rest
                fsdp=1,  # along the one that parameters are divided over as well
                trained="sharded",  # over fsdp: parameters, moments, average; or "replicated"
                frozen="replicated",  # teachers, LPIPS, a frozen tokenizer; or "sharded"
                smallest=65_536,  # elements of an array that is worth dividing
            ),
            compute=dict(
                micro_batches=1,  # gradients are means over so many micro-batches
                scan_blocks=False,  # the backbone's blocks as one compiled loop, and a teacher's
                backbone_remat="none",  # "products" or "blocks": see models/remat.py
                tokenizer_remat="none",
            ),
            sampling=dict(
                method="euler-maruyama",  # or "euler", "heun"
                steps=250,
                guidance_scale=1.0,
                guidance_low=0.0,
                guidance_high=1.0,
            ),
            evaluation=dict(  # see training/online.py
                every=0,  # steps; 0: never
                samples=2000,  # generated images of the Fréchet distance; 0: none
                network="inception",  # whose features: FID's, or "teachers.NAME"
                weights="pretrained/inception/pt_inception-2015-12-05-6726825d.pth",  # of inception
                reference="",  # images or their statistics; "": as many training images
                cknna_images=1000,  # held-out images of CKNNA; 0: none
                cknna_time=0.5,  # their noise level, 0 to 1
            ),
            run=dict(
                steps=400_000,
                log_every=100,
                sample_every=10_000,
                sample_steps=50,
                checkpoint_every=50_000,
                keep_checkpoints=3,
                keep_every=0,  # checkpoints at multiples of this are kept for ever; 0: none are
                max_skipped=10,  # steps in a row whose loss or gradient is not finite
                data_timeout=600.0,  # seconds that a batch may take
                on_collapse="warn",  # or "stop": see training/monitor.py
            ),
        )
    )


def imagenet256() -> ConfigDict:
    """What the published ImageNet 256 x 256 runs share: data, teacher, LPIPS, 400,000 steps.

    Weights are expected under pretrained/; docs and `check_files` say which.
    """
    config = base()
    config.dtype = "bfloat16"
    config.data.update(source="tfds", name="imagenet2012", resolution=256, num_classes=1000)
    config.teachers.dinov2 = teacher("dinov2-b", weights="pretrained/dinov2_vitb14_pretrain.pth")
    config.lpips.weights = "pretrained/lpips/vgg.pth"
    config.lpips.vgg_weights = "pretrained/lpips/vgg16-397923af.pth"
    return config


def backbone(arch: str = "", *, family: str = "", **changes: Any) -> ConfigDict:
    """`config.backbone`: a preset of a family (models/backbones), or every option by hand.

    Args:
      arch: a preset of any family, or "".
      family: without a preset; "sit" by default.
      changes: the family's options; None is the preset's value, or else the default.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("backbone", family, arch, **changes)


def tokenizer(arch: str = "", *, family: str = "", **changes: Any) -> ConfigDict:
    """`config.tokenizer`: a preset of a family (models/tokenizers), or every size by hand.

    Args:
      arch: a preset of any family, or "".
      family: without a preset; "kl" by default.
      changes: the family's options, of which None is the preset's value, or else the default; and
        weights: "" trains from scratch; else a file under LDM's names, a folder of diffusers' or a
          variant's file in it, a work directory, or hf://owner/repository[/folder][/file];
        statistics: latent statistics (.pt); "" looks beside `weights`, or measures them.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("tokenizer", family, arch, **changes)


def condition(family: str = "", **changes: Any) -> ConfigDict:
    """`config.condition`: what steers the backbone (models/conditioning), and how often not.

    Args:
      family: "class" by default.
      changes: the family's options, and
        drop: the probability with which training drops the condition; with 0 the backbone learns no
          null condition.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("condition", family, **changes)


def projector(family: str = "", **changes: Any) -> ConfigDict:
    """`config.projector`: from the backbone's tokens to the teachers' (models/projectors.py).

    Args:
      family: "mlp" by default.
      changes: the family's options.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("projector", family, **changes)


def teacher(arch: str = "", *, family: str = "", **changes: Any) -> ConfigDict:
    """One entry of `config.teachers`: a frozen encoder (models/encoders) and its weights.

    A preset brings what it was trained with, such as the preprocessing of a ViT.

    Args:
      arch: a preset of any family, or "".
      family: without a preset; "vit" by default.
      changes: the family's options, of which None is the preset's value, or else the default; and
        weights: the file, as its authors publish it or as `pretrain-teacher` writes it;
        pretrain: how `pretrain-teacher` trains it.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("teacher", family, arch, **changes)


def apply_recipe(config: ConfigDict, recipe: str) -> ConfigDict:
    """Turn a REPA-E configuration into one of `RECIPES`, in place; returns it.

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
    if recipe == "vanilla":
        config.teachers = ConfigDict()
        config.evaluation.cknna_images = 0
    if recipe == "vae":
        config.train = tuple(name for name in config.train if name != "backbone")
        config.teachers = ConfigDict()
        config.evaluation.every = 0
    if recipe == "repae_no_stop_gradient":
        config.objective.stop_gradient = False
    if recipe == "repae_no_latent_norm":
        config.objective.latent_norm = "fixed"
    if recipe == "repae_no_regularisation":
        for term in ("reconstruction", "perceptual", "kl", "adversarial"):
            config.objective[f"{term}_weight"] = 0.0
    config.name = f"{config.name}_{recipe}" if recipe != "repae" else config.name
    return config


def to_json(config: ConfigDict, *, sealed: bool = False) -> str:
    """The configuration as readable JSON, `sealed` with a checksum."""
    content = versioned(config.to_dict())
    content = seal(content) if sealed else content
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def from_json(text: str, *, source: str) -> ConfigDict:
    """The inverse of `to_json`.

    Raises:
      UserError: damaged, or of another version.
    """
    return from_stored(parse_json(text, dict[str, Any], source=source), source=source)


def from_stored(stored: Any, *, source: str) -> ConfigDict:
    """The configuration of what `to_json` wrote, as JSON gives it back.

    Raises:
      UserError: of a later version, or damaged. (`validate` checks its values.)
    """
    if isinstance(stored, dict):
        way_out = "set keys on the command line"
        stored = unseal_if_sealed(stored, source=source, way_out=way_out)
    stored = upgraded(stored, source=source)
    expected = _defaults(stored)
    if unknown := _apart(expected, stored, "config"):
        raise UserError(f"{source} is not of this version, which knows no {unknown[0]}")
    check_values(_filled(stored, expected), source=f"{source}: config.")
    config = base()
    for name in stored.keys() & set(SECTIONS):
        config[name] = section_of(name, expected[name]["family"])
    for name, entry in stored.get("teachers", {}).items():
        config.teachers[name] = teacher(**_tuples(entry))
    config.update(_tuples({k: v for k, v in stored.items() if k != "teachers"}))
    return config


def absent_keys(stored: Mapping[str, Any]) -> list[str]:
    """The keys of a configuration that what JSON gave back of one does not have."""
    stored = upgraded(stored, source="config")
    return _apart(stored, _defaults(stored), "config")


def _defaults(stored):
    names = stored.get("teachers") if isinstance(stored.get("teachers"), dict) else {}
    sections = {
        name: section_of(name, stored[name]["family"]).to_dict()
        for name in SECTIONS
        if isinstance(stored.get(name), dict)
        and str(stored[name].get("family")) in families_of(name)[0]
    }
    teachers = {name: _defaults_of_teacher(names[name]) for name in names}
    return {**base().to_dict(), **sections, "teachers": teachers}


def _defaults_of_teacher(entry):
    """Those of its family; an entry of none is left for `check_values` to refuse."""
    if not isinstance(entry, dict):
        return teacher().to_dict()
    known = str(entry.get("family")) in families_of("teacher")[0]
    return teacher(family=entry["family"]).to_dict() if known else entry


def _apart(one, other, path):
    """The keys of nested dicts that only the other has."""
    lines = [f"{path}.{key}" for key in other if key not in one]
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            lines += _apart(one[key], other[key], f"{path}.{key}")
    return sorted(lines)


def _filled(stored, expected):
    """Nested dicts, with what is expected for absent keys."""
    both = {
        key: _filled(stored[key], value)
        for key, value in expected.items()
        if isinstance(value, dict) and isinstance(stored.get(key), dict)
    }
    return {**expected, **stored, **both}


def differences(old: dict, new: dict, prefix: str = "config") -> list[str]:
    """`key: old -> new` for every key in which two configurations (as plain dicts) differ."""
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        path = f"{prefix}.{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, path)
        elif _plain(a) != _plain(b):
            lines.append(f"{path}: {a!r} -> {b!r}")
    return lines


def _tuples(value):
    """JSON has lists where configurations have tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
