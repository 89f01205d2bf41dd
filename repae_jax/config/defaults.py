"""Configurations: the default of every key, the recipes, and the JSON form.

A file in configs/ calls `base()` and changes the keys of its experiment. The keys:

    seed        the seed of initialization, data order and noise
    train       the networks to train: any of "backbone", "tokenizer", "discriminator"
    data        the source of the images
    tokenizer, backbone, discriminator, lpips, teachers   the networks
    projector   the map from the backbone's tokens to the teachers' widths
    condition   the conditioning of the backbone, and the probability of dropping it
    objective   coefficients and variants of the loss (objectives/objective.py)
    time        the distribution of the diffusion times
    optimizer   one AdamW per trained network
    mesh        the axes of the devices, and the parts of the state that are sharded over them
    compute     rematerialization, loops and micro-batches, which trade time for memory
    sampling    the sampler
    evaluation  the measures taken during training, and their interval
    run         length and intervals of the run
"""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from repae_jax.config.schema import check_values
from repae_jax.config.sections import SECTIONS, families_of, section_of
from repae_jax.config.versions import RENAMED_RECIPES, add_version, upgrade
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
    """Make a configuration with every key at its default: published REPA-E, ImageNet 256 x 256."""
    adamw = dict(
        learning_rate=1e-4,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,  # inf: no clipping
        warmup_steps=0,
        decay_steps=0,  # 0: a constant rate, as published; N: a cosine to zero at step N
    )
    return ConfigDict(
        dict(
            name="",
            seed=0,
            train=NETWORKS,
            batch_size=256,
            ema_decay=0.9999,
            dtype="float32",  # type of the networks' matrix products: "float32" or "bfloat16"
            data=dict(
                source="tfds",  # a key of `openers` in data/sources.py
                path="",  # the source's folder; tfds: the data directory ("" = default)
                name="",  # tfds: the builder, e.g. "imagenet2012"; scenes: the number of images
                resolution=256,
                num_classes=1000,
                flip=False,
                exif=False,  # rotate images by their EXIF orientation; the original ignores it
                on_bad_image="error",  # or "skip": the next readable image takes its place
                workers=8,  # decoding processes; 0 decodes in threads
                accept="",  # to resume with changed data: the code that the error message gives
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
                least_time=0.0,  # the target is (x_t - x) / max(t, this); 0: the velocity
                backbone_alignment=0.5,
                tokenizer_alignment=1.5,
                alignment_end=0,  # the step at which the backbone's L_REPA ends; 0: never
                spatial_norm=0.0,  # iREPA's share of the teachers' mean to remove; 0: off
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
                cosine_weight=0.0,
            ),
            time=dict(  # objectives/times.py
                weighting="uniform",  # or "lognormal", which reads mean and scale
                mean=0.0,
                scale=1.0,
                highest=1.0,  # truncate the distribution above this time
                shift=1.0,  # multiplies the odds t / (1 - t): above 1, more noise
            ),
            optimizer={name: dict(adamw) for name in NETWORKS},
            mesh=dict(
                data=-1,  # devices along the axis that shards only the batch; -1: all remaining
                fsdp=1,  # devices along the axis that shards the batch and the parameters
                trained="sharded",  # parameters, moments, average, over fsdp; or "replicated"
                frozen="replicated",  # teachers, LPIPS, a frozen tokenizer; or "sharded"
                smallest=65_536,  # elements of the smallest array that is sharded
            ),
            compute=dict(
                micro_batches=1,  # number of micro-batches whose gradients are averaged
                scan_blocks=False,  # compile the blocks of backbone and teachers as one loop each
                backbone_remat="none",  # "products" or "blocks": see models/remat.py
                tokenizer_remat="none",
                stripes=0,  # most stripes per image (models/stripes.py); 0: by device and batch
            ),
            sampling=dict(
                method="euler-maruyama",  # or "euler", "heun"
                steps=250,
                guidance_scale=1.0,
                guidance_low=0.0,
                guidance_high=1.0,
                guidance_channels=0,  # guide the first N channels of the latents alone; 0: all
                shift=1.0,  # multiplies the odds t / (1 - t) of the steps' times
            ),
            evaluation=dict(  # see training/online.py
                every=0,  # steps; 0: never
                samples=2000,  # generated images for the Fréchet distance; 0: none
                network="inception",  # feature network: FID's InceptionV3, or "teachers.NAME"
                weights="pretrained/inception/pt_inception-2015-12-05-6726825d.pth",  # InceptionV3
                reference="",  # images or their statistics; "": as many training images
                cknna_images=1000,  # held-out images for CKNNA; 0: none
                cknna_time=0.5,  # noise level of CKNNA's images, 0 to 1
            ),
            run=dict(
                steps=400_000,
                log_every=100,
                sample_every=10_000,
                sample_steps=50,
                checkpoint_every=50_000,
                keep_checkpoints=3,
                keep_every=0,  # checkpoints at multiples of this are kept forever; 0: none
                max_skipped=10,  # consecutive steps with a NaN or infinite loss or gradient
                data_timeout=600.0,  # seconds to wait for a batch
                on_collapse="warn",  # or "stop": see training/monitor.py
            ),
        )
    )


def imagenet256() -> ConfigDict:
    """Make the configuration that the published ImageNet 256 x 256 runs share.

    They train 400,000 steps in bfloat16 with a DINOv2 teacher and LPIPS. Weights are read from
    pretrained/; docs/weights.md and the errors of `check_files` list them.
    """
    config = base()
    config.dtype = "bfloat16"
    config.data.update(source="tfds", name="imagenet2012", resolution=256, num_classes=1000)
    config.teachers.dinov2 = teacher("dinov2-b", weights="pretrained/dinov2_vitb14_pretrain.pth")
    config.lpips.weights = "pretrained/lpips/vgg.pth"
    config.lpips.vgg_weights = "pretrained/lpips/vgg16-397923af.pth"
    return config


def lightningdit256() -> ConfigDict:
    """Make the configuration of the published LightningDiT runs on ImageNet 256 x 256.

    They train 64 epochs on cached latents, by velocity and its direction at logit-normal times, and
    sample by 249 Euler steps with guidance of three channels (arXiv 2501.01423, and its code).
    """
    config = imagenet256()
    config.backbone = backbone("LightningDiT-XL/1")
    config.batch_size = 1024
    config.run.update(steps=80_000, checkpoint_every=20_000)
    config.optimizer.backbone.update(learning_rate=2e-4, b2=0.95, max_grad_norm=float("inf"))
    config.objective.cosine_weight = 1.0
    config.time.weighting = "lognormal"
    config.sampling.update(
        method="euler",
        steps=249,  # between 250 points
        shift=1 / 0.3,  # 0.3 in the code's direction of time
        guidance_scale=10.0,
        guidance_high=0.9,
        guidance_channels=3,
    )
    return config


def dit256() -> ConfigDict:
    """Make the configuration of the published DiT runs on ImageNet 256 x 256.

    They train DiT-XL/2 on SD-VAE's latents, and sample by 250 ancestral steps that guide three
    channels (arXiv 2212.09748, section 4, and its code).
    """
    config = imagenet256()
    config.backbone = backbone("DiT-XL/2")
    config.objective.interpolant = "ddpm"
    config.optimizer.backbone.max_grad_norm = float("inf")
    config.run.steps = 7_000_000
    config.sampling.update(method="ddpm", steps=250, guidance_scale=1.5, guidance_channels=3)
    return config


def backbone(arch: str = "", *, family: str = "", **changes: Any) -> ConfigDict:
    """Make `config.backbone`: a preset of a family (models/backbones), or every option by hand.

    Args:
      arch: a preset of any family, or "".
      family: needed only without a preset, which brings its own; "sit" by default.
      changes: the family's options, where None stands for the preset's value or the default.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("backbone", family, arch, **changes)


def tokenizer(arch: str = "", *, family: str = "", **changes: Any) -> ConfigDict:
    """Make `config.tokenizer`: a preset of a family (models/tokenizers), or every size by hand.

    Args:
      arch: a preset of any family, or "".
      family: needed only without a preset, which brings its own; "kl" by default.
      changes: the family's options, where None stands for the preset's value or the default; and
        weights: "" trains from scratch; otherwise a file under LDM's names, a diffusers folder or
          the file of a variant in it, a work directory, or
          hf://owner/repository[/folder][/file];
        statistics: latent statistics (.pt); "" looks beside `weights`, or measures them.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("tokenizer", family, arch, **changes)


def condition(family: str = "", **changes: Any) -> ConfigDict:
    """Make `config.condition`: the conditioning (models/conditioning) and its drop probability.

    Args:
      family: the family; "class" by default.
      changes: the family's options, and
        drop: the probability with which training drops the condition; with 0 the backbone learns no
          null condition.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("condition", family, **changes)


def projector(family: str = "", **changes: Any) -> ConfigDict:
    """Make `config.projector`: the map from backbone tokens to teacher widths (models/projectors).

    Args:
      family: the family; "mlp" by default.
      changes: the family's options.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("projector", family, **changes)


def teacher(arch: str = "", *, family: str = "", **changes: Any) -> ConfigDict:
    """Make one entry of `config.teachers`: a frozen encoder (models/encoders) and its weights.

    A preset also sets options fixed by its training, such as the preprocessing of a ViT.

    Args:
      arch: a preset of any family, or "".
      family: needed only without a preset, which brings its own; "vit" by default.
      changes: the family's options, where None stands for the preset's value or the default; and
        weights: the file that the authors publish or that `pretrain-teacher` writes;
        pretrain: options of `pretrain-teacher`.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("teacher", family, arch, **changes)


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
    """The configuration as readable JSON, with a checksum if `sealed`."""
    content = add_version(config.to_dict())
    content = seal(content) if sealed else content
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def from_json(text: str, *, source: str) -> ConfigDict:
    """Read a configuration from the JSON text that `to_json` wrote.

    Raises:
      UserError: the text is damaged, or a later version wrote it.
    """
    return from_stored(parse_json(text, dict[str, Any], source=source), source=source)


def from_stored(stored: Any, *, source: str) -> ConfigDict:
    """Make a configuration from the parsed JSON of `to_json`; upgrades earlier versions.

    Raises:
      UserError: a later version wrote it, or it is damaged. (`validate` checks how values combine.)
    """
    if isinstance(stored, dict):
        way_out = "set keys on the command line"
        stored = unseal_if_sealed(stored, source=source, way_out=way_out)
    stored = upgrade(stored, source=source)
    expected = _defaults(stored)
    if unknown := _apart(expected, stored, "config"):
        raise UserError(f"{source} has the key {unknown[0]}, which this version does not know")
    check_values(_with_defaults(stored, expected), source=f"{source}: config.")
    config = base()
    for name in stored.keys() & set(SECTIONS):
        config[name] = section_of(name, expected[name]["family"])
    for name, entry in stored.get("teachers", {}).items():
        config.teachers[name] = teacher(**_tuples(entry))
    config.update(_tuples({k: v for k, v in stored.items() if k != "teachers"}))
    return config


def absent_keys(stored: Mapping[str, Any]) -> list[str]:
    """The configuration keys that are missing in `stored`, a parsed JSON configuration."""
    stored = upgrade(stored, source="config")
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
    """The defaults of a teacher's family; `check_values` rejects an entry without a known one."""
    if not isinstance(entry, dict):
        return teacher().to_dict()
    known = str(entry.get("family")) in families_of("teacher")[0]
    return teacher(family=entry["family"]).to_dict() if known else entry


def _apart(one, other, path):
    """The keys of nested dicts that `other` has and `one` lacks."""
    lines = [f"{path}.{key}" for key in other if key not in one]
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            lines += _apart(one[key], other[key], f"{path}.{key}")
    return sorted(lines)


def _with_defaults(stored, expected):
    """Complete the nested dict `stored` with the values of `expected` for absent keys."""
    both = {
        key: _with_defaults(stored[key], value)
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
    """Turn the lists of JSON into the tuples of configurations, recursively."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
