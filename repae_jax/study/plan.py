"""The plan of a study: arms, each a change of a common configuration, over several seeds.

A study's file in configs/ calls `base()` and sets:

    name        the study's name
    config      the configuration that the arms change (config/defaults.py)
    arms        name -> arm, see `arm`
    seeds       number of runs of each arm, with seeds 0, 1, 2, ...
    measured_at the steps at which every run is measured; the last is its length
    rendered    number of images of each split to render once, into the study's folder
    judge       the network that judges samples (study/judge.py); `prompt_judge()` for captions
    measures    number of images for each measure
    claims      name -> claim, see `claim`
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.config import text_encoder
from repae_jax.config.needs import missing_files, missing_for_loading
from repae_jax.config.recipes import apply_recipe
from repae_jax.config.sections import SECTIONS
from repae_jax.config.validate import validate
from repae_jax.data.geneval_metadata import TAGS
from repae_jax.errors import UserError, first_line
from repae_jax.evaluation.alignment import TOP_K
from repae_jax.evaluation.precision_recall import NEIGHBORS
from repae_jax.training.detector import DetectorRecipe
from repae_jax.utils.schema import check_schema, real, whole

DATA, TEXT_ENCODER = "data", "text_encoder"  # in a study's folder: rendered images, its encoder
RENDERED = ("scenes", "described")  # sources that render their images
RESULT = "result.json"  # in a run's folder
_MOST_CHECKPOINTS = 50  # per run
_APART = 10_000  # difference between the seeds of consecutive stages
MEASURES = {  # name -> (description, whether larger is better; None: neither)
    "frechet": ("Fréchet distance in the judge's features", False),
    "precision": ("precision", True),
    "recall": ("recall", True),
    "class_accuracy": ("share of samples that the judge assigns to the requested class", True),
    "prompts": ("share of samples that fit their prompts, mean over GenEval's tags", True),
    **{tag: (f"share of samples that fit prompts of the tag {tag}", True) for tag in TAGS},
    "unseen": ("share of samples that fit prompts with combinations absent from training", True),
    "psnr": ("PSNR of held-out images, dB", True),
    "latent_variance": ("variance of the latents", None),
    "spatial_variance": ("variance of the latents over the positions of an image", None),
    "total_variation": ("total variation of an image's latents", None),
    "latent_within": ("share of the latents' variance that lies within images", None),
    "latent_common": ("share of the latents' variance that all images have in common", None),
    "latent_detail": ("share of the latents' power in fine detail", None),
    "cknna": ("CKNNA of the aligned block with the teacher", True),
}


def base() -> ConfigDict:
    """Make a study with every key at its default."""
    return ConfigDict(
        dict(
            name="",
            config=ConfigDict(),
            arms=ConfigDict(sort_keys=False),
            seeds=5,
            measured_at=(),
            rendered=dict(train=0, heldout=0),  # 0: render images when they are needed
            judge=dict(
                channels=(32, 64, 128),
                steps=600,
                batch_size=128,
                learning_rate=2e-3,
                weight_decay=0.05,
                shift=2,
            ),
            measures=dict(
                samples=1000,  # generated images
                reference=10_000,  # training images, at most
                heldout=2000,  # held-out images, at most
                cknna_time=0.5,  # noise level of CKNNA, 0 to 1
            ),
            claims=ConfigDict(sort_keys=False),
        ),
        sort_keys=False,  # arms and claims are shown in the order of the study's file
    )


def arm(
    title: str,
    recipe: str = "repae",
    *,
    vae: str = "",
    changes: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """Make an entry of `arms`.

    Args:
      title: the arm's title in reports.
      recipe: a key of `config.recipes.RECIPES`.
      vae: the arm whose VAE, of the same seed, this arm starts from; "": none.
      changes: further changed keys, nested as in the configuration; a section with its "family"
        replaces the whole section.
    """
    return ConfigDict(dict(title=title, recipe=recipe, vae=vae, changes=dict(changes or {})))


def claim(text: str, measure: str, better: str, worse: str) -> ConfigDict:
    """Make an entry of `claims`: the arm `better` is ahead of the arm `worse` in `measure`.

    The comparison is at the last step. For a measure without a better direction, such as a
    variance, ahead means larger.
    """
    return ConfigDict(dict(text=text, measure=measure, better=better, worse=worse))


class _Judge(TypedDict):
    learning_rate: real(0)
    weight_decay: real(0)
    shift: whole(0, 1024)


class _PromptJudge(TypedDict):
    renders: whole(1, 10**7)
    steps: whole(1, 10**7)
    batch_size: whole(1, 10**5)
    learning_rate: real(0)
    weight_decay: real(0)
    shift: whole(0, 16)
    noise: real(0)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a study: an arm with a seed."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}:{self.seed}"

    def workdir(self, output: pathlib.Path) -> pathlib.Path:
        """The run's work directory in the study's folder `output`."""
        return output / "runs" / f"{self.arm}_{self.seed}"


def jobs(study: ConfigDict) -> list[Job]:
    """All runs, seed after seed; a run follows the run whose VAE it takes."""
    order, left = [], dict(study.arms)
    while left:
        ready = [name for name, entry in left.items() if not entry.vae or entry.vae in order]
        order += ready
        left = {name: entry for name, entry in left.items() if name not in ready}
    return [Job(name, seed) for seed in range(study.seeds) for name in order]


def prompt_judge() -> ConfigDict:
    """Make the section `judge` of a study with captions: how the detector is trained."""
    return ConfigDict(dataclasses.asdict(DetectorRecipe()))


def judges_prompts(study: ConfigDict) -> bool:
    """Whether the study's runs take captions, which a detector judges in place of a classifier."""
    return study.config.condition.family == "text"


def teacher_path(output: pathlib.Path, name: str) -> pathlib.Path:
    """The file of a teacher in a study's folder."""
    return output / f"teacher_{name}.safetensors"


def study_config(study: ConfigDict, output: pathlib.Path) -> ConfigDict:
    """The study's configuration, with what all runs share from the study's folder."""
    config = study.config.copy_and_resolve_references()
    for name in trained_teachers(config):
        config.teachers[name].weights = str(teacher_path(output, name))
    if trains_text_encoder(config):
        config.text_encoder.weights = str(output / TEXT_ENCODER)
    if study.rendered.train:
        config.data.update(source="packed", path=str(output / DATA), name="")
    return config


def trained_teachers(config: ConfigDict) -> list[str]:
    """The names of the teachers that the study trains; others have published weights."""
    return [name for name, entry in config.teachers.items() if entry.pretrain.steps]


def trains_text_encoder(config: ConfigDict) -> bool:
    """Whether the study trains the text encoder; others have published weights."""
    return bool(config.text_encoder.get("pretrain") and config.text_encoder.pretrain.steps)


def text_encoder_configs(study: ConfigDict, output: pathlib.Path) -> dict[str, ConfigDict]:
    """The configurations for the training of the study's text encoders, by their folders.

    An arm that changes `text_encoder` has one of its own. The captions are those of the study's
    source, rendered or not.
    """
    found = {}
    for name in study.arms:
        config = run_config(study, Job(name, 0), output)
        if trains_text_encoder(config):
            config.data, config.seed = study.config.data, study.config.seed
            found[config.text_encoder.weights] = config
    return found


def run_config(study: ConfigDict, job: Job, output: pathlib.Path) -> ConfigDict:
    """The configuration of one run.

    Runs with the same seed share initialization and random draws across arms, so that they can be
    compared in pairs. A run whose VAE was itself tuned from another arm's VAE gets another seed:
    otherwise its backbone would start with the initialization and the data order of the backbone
    with which REPA-E tuned the VAE.
    """
    entry = study.arms[job.arm]
    config = apply_recipe(study_config(study, output), entry.recipe)
    sections = {name: c for name, c in entry.changes.items() if name in SECTIONS and "family" in c}
    for name, section in sections.items():  # the keys of another family
        config[name] = section.copy_and_resolve_references()
    config.update({name: c for name, c in entry.changes.items() if name not in sections})
    if "text_encoder" in entry.changes and trains_text_encoder(config):
        config.text_encoder.weights = str(output / f"{TEXT_ENCODER}_{job.arm}")
    config.name = f"{study.name} {job.arm}"
    config.seed = job.seed + _APART * max(0, len(_before(study, job.arm)) - 1)
    if entry.vae:
        config.tokenizer.weights = str(Job(entry.vae, job.seed).workdir(output))
    last = study.measured_at[-1]
    every = math.gcd(*study.measured_at)
    config.run.update(
        steps=last, checkpoint_every=every, keep_checkpoints=1, keep_every=every, sample_every=last
    )
    return config


def _before(study, name):
    """The chain of arms whose VAEs lead to this arm, the nearest first."""
    chain = [name]
    while vae := study.arms[chain[-1]].vae:
        if vae not in study.arms:
            known = ", ".join(study.arms)
            raise UserError(f"arm {name}: there is no arm {vae!r}; there are {known}")
        if vae in chain:
            raise UserError(f"arm {name}: its VAE is its own, by way of {', '.join(chain)}")
        chain.append(vae)
    return chain[1:]


def check(study: ConfigDict, output: pathlib.Path) -> None:
    """Raise UserError for an invalid value; it names the key and the way out."""
    if study.seeds < 1:
        raise UserError(f"seeds is {study.seeds}: give at least 1")
    _check_steps(study)
    _check_rendered(study)
    _check_judge(study)
    _check_measures(study)
    _check_arms(study, output)
    for name, entry in study.claims.items():
        if entry.measure not in MEASURES:
            raise UserError(f"claim {name}: no measure {entry.measure!r}; {', '.join(MEASURES)}")
        for side in (entry.better, entry.worse):
            if side not in study.arms:
                raise UserError(f"claim {name}: no arm {side!r}; {', '.join(study.arms)}")


def missing_for_runs(study: ConfigDict, output: pathlib.Path) -> list[str]:
    """List the missing files that the arms need and the study does not make, each as a clause."""
    missing = []
    for name in study.arms:
        config = run_config(study, Job(name, 0), output)
        made = trained_teachers(config)
        config.teachers = ConfigDict({k: v for k, v in config.teachers.items() if k not in made})
        if study.arms[name].vae:
            config.tokenizer.weights = ""
        if trains_text_encoder(config):
            config.text_encoder = text_encoder()
        if study.rendered.train:
            config.data.update(source=study.config.data.source, path="")
        missing += missing_files(config)
    if missing and not study.rendered.train:
        missing += missing_for_loading(config)
    return missing


def _check_steps(study):
    steps = list(study.measured_at)
    whole = all(isinstance(step, int) for step in steps)
    if not steps or not whole or steps != sorted(set(steps)) or steps[0] < 1:
        raise UserError(
            f"measured_at is {tuple(steps)}: give rising steps, the last a run's length"
        )
    interval = math.gcd(*steps)
    if steps[-1] > _MOST_CHECKPOINTS * interval:
        raise UserError(
            f"measured_at is {tuple(steps)}: a run keeps a checkpoint every {interval} steps, the "
            f"greatest common divisor; let it divide the last into at most {_MOST_CHECKPOINTS}"
        )


def _check_rendered(study):
    counts = study.rendered.to_dict()
    if any(counts.values()):
        if study.config.data.source not in RENDERED:
            raise UserError(
                f"rendered is {counts}, but config.data.source is {study.config.data.source!r}: "
                f"only {' and '.join(RENDERED)} are rendered; leave it at 0"
            )
        if min(counts.values()) < 1:
            raise UserError(f"rendered is {counts}: give both splits at least 1, or both 0")


def _check_judge(study):
    judge = study.judge
    if judges_prompts(study):
        if study.config.data.source != "described":
            raise UserError(
                f"config.data.source is {study.config.data.source!r}: the judge of captions knows "
                "'described' alone"
            )
        check_schema(judge.to_dict(), _PromptJudge, source="judge.")
        return
    check_schema(judge.to_dict(), _Judge, source="judge.")
    if not judge.channels or any(width < 8 or width % 8 for width in judge.channels):
        raise UserError(f"judge.channels is {judge.channels}: give multiples of 8")
    if judge.steps < 1:
        raise UserError(f"judge.steps is {judge.steps}: give at least 1")
    train = study.rendered.train
    if judge.batch_size < 1 or (train and judge.batch_size > train):
        raise UserError(
            f"judge.batch_size is {judge.batch_size}: give 1 to the number of training images"
        )


def _check_measures(study):
    each_tag = len(TAGS) if judges_prompts(study) else 0
    least = {
        "samples": max(NEIGHBORS + 1, each_tag),
        "reference": NEIGHBORS + 1,
        "heldout": TOP_K + 1,
    }
    for name, count in least.items():
        if study.measures[name] < count:
            raise UserError(f"measures.{name} is {study.measures[name]}: give at least {count}")
    if not 0 <= study.measures.cknna_time <= 1:
        raise UserError(f"measures.cknna_time is {study.measures.cknna_time}: give 0 to 1")


def _check_arms(study, output):
    if len(study.config.teachers) != 1:
        raise UserError(
            f"config.teachers has {len(study.config.teachers)} entries: a study measures the "
            "alignment with one"
        )
    if not study.arms:
        raise UserError("the study has no arms: add some with arm(...)")
    for name in study.arms:
        _before(study, name)
        try:
            validate(run_config(study, Job(name, 0), output))
        except UserError as error:
            raise UserError(f"arm {name}: {error}") from error
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"arm {name}: {first_line(error)}") from error
