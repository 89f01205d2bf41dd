"""Compilation of a configuration's programs for absent TPUs and GPUs, with a report of their needs.

XLA compiles for a TPU slice that it knows by name, or for a GPU from its description, so memory,
collectives and the compiler's verdict are real. The times are a roofline, a lower bound for every
program. Without a GPU, XLA cannot time alternative kernels; this changes the memory that they need
and leaves the collectives the same.
"""

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from repae_jax.aot.chips import Chip, parse_topology
from repae_jax.aot.hlo import measure_traffic
from repae_jax.aot.topologies import absent_devices, compile_for
from repae_jax.config.modules import build_sampler
from repae_jax.config.validate import check_devices, validate
from repae_jax.errors import UserError, first_line, out_of_memory
from repae_jax.parallel.flops import count_flops
from repae_jax.parallel.mesh import batch_sharding, make_mesh
from repae_jax.parallel.sharding import summary
from repae_jax.runs.build import build_models
from repae_jax.runs.open_run import sampling_weights
from repae_jax.sampling.generate import make_generate
from repae_jax.training.batch_shapes import input_shapes
from repae_jax.training.program import Program, gc_disabled


@dataclasses.dataclass(frozen=True)
class Report:
    """The memory, operations and traffic of a compiled program, and the times that bound it.

    Attributes:
      program: "train" or "sample".
      topology: the topology, such as "v5e:16x16".
      devices: number of chips.
      batch_size: images over all chips.
      batches: the content of batches: images, or cached latents with optional images or tokens.
      arguments, temporaries, peak: bytes per device. The peak, which the program reserves, is the
        sum of arguments, temporaries, and results that do not reuse an argument's memory.
      memory: bytes of a chip's memory.
      flops: operations per image, including those repeated by rematerialization.
      work: operations per image without the repeated ones.
      links: kind of collective -> bytes that a device receives per run.
      traffic: bytes that a device reads and writes per run.
      movers: part of the train step -> its share of `traffic`, see `aot.parts`; {} for others.
      form: the form of the images in the convolutional networks, and why, as text.
      compute_seconds, memory_seconds, link_seconds: time for each resource at the chip's published
        rate.
      compile_seconds: compilation time.
    """

    program: str
    topology: str
    devices: int
    batch_size: int
    batches: str
    arguments: int
    temporaries: int
    peak: int
    memory: float
    flops: float
    work: float
    links: dict[str, float]
    traffic: float
    movers: dict[str, float]
    form: str
    compute_seconds: float
    memory_seconds: float
    link_seconds: float
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the program fits the chip's memory."""
        return self.peak <= self.memory

    @property
    def seconds(self) -> float:
        """The roofline: the time of the slowest resource, in seconds per run."""
        return max(self.compute_seconds, self.memory_seconds, self.link_seconds)

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization, 0 to 1, if a run takes `seconds`."""
        return self.compute_seconds * self.work / self.flops / self.seconds


def compile_train(
    config: ConfigDict, topology: str, *, kept: tuple[str, ...] = ("tokens",), verbose: bool = False
) -> Report:
    """Compile the train step for a topology.

    Args:
      config: the configuration; its weights are not read, and of cached latents only the manifest.
      topology: the topology, such as "v5e:16x16".
      kept: the assumed content of a cache of latents that does not exist yet: for the teachers
        "tokens" or "images", for the text encoder "text".
      verbose: print the state's sharding.

    Raises:
      UserError: the topology is unknown, the configuration is wrong, there is no compiler for the
        topology, or the program does not fit.
    """
    program, chip = _program(config, topology, kept)
    arguments = program.arguments()
    if verbose:
        print(summary(program.template, program.shardings), flush=True)
    flops = program.flops()
    plain = config.copy_and_resolve_references()
    plain.compute.update(backbone_remat="none", tokenizer_remat="none", stripes=1)
    simple = dataclasses.replace(program, config=plain, models=build_models(plain))
    work = simple.flops()
    return _compile("train", program.step, arguments, flops, work, program, topology, chip)


def compile_sampler(config: ConfigDict, topology: str) -> Report:
    """Compile sampling and decoding of one batch for a topology; see `compile_train`."""
    program, chip = _program(config, topology)
    models, mesh = program.models, program.mesh
    if models.backbone is None:
        raise UserError("config.train has no 'backbone': there is nothing to sample")
    generate = make_generate(models, build_sampler(config), mesh=mesh)
    ids = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32, sharding=batch_sharding(mesh))
    inputs = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch_sharding(mesh))
        for name, leaf in input_shapes(config.batch_size, models).items()
    }
    arguments = (sampling_weights(program.template), program.key_shape(), ids, inputs)
    flops = count_flops(generate, *arguments) / config.batch_size
    return _compile("sample", generate, arguments, flops, flops, program, topology, chip)


def sweep(
    config: ConfigDict, topology: str, *, kept: tuple[str, ...] = ("tokens",), verbose: bool = False
) -> Report:
    """Find the largest batch that fits a chip's memory, to an eighth; returns its report.

    The search doubles the images per device until they no longer fit, then bisects. With
    micro-batches it counts the images of one micro-batch. The arguments are those of
    `compile_train`; `config.batch_size` is changed.

    Raises:
      UserError: one image per device does not fit; or see `compile_train`.
    """
    _, count = parse_topology(topology)
    largest = None
    low, high, size = 0, math.inf, 1
    while True:
        config.batch_size = size * count * config.compute.micro_batches
        try:
            report = compile_train(config, topology, kept=kept)
            fits = report.fits
        except OutOfMemory as error:
            fits, report = False, error
        if verbose:
            what = f"{report.peak / 1e9:.2f} GB" if fits else "does not fit"
            print(f"{config.batch_size // count} images per device: {what}", flush=True)
        if fits:
            low, largest = size, report
        else:
            high = size
        if high - low <= max(1, low // 8):
            break
        size = 2 * low if high is math.inf else (low + high) // 2
    if largest is None:
        raise UserError(
            f"not one image per device fits {topology}: raise --config.mesh.fsdp, or set "
            "--config.compute.tokenizer_remat=blocks --config.compute.backbone_remat=blocks"
        )
    return largest


class OutOfMemory(UserError):
    """Error of the compiler that the program does not fit the chip."""


def _program(config, topology, kept=("tokens",)):
    chip, count = parse_topology(topology)
    validate(config)
    check_devices(config, count)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, devices=absent_devices(topology))
    return Program(config, build_models(config), mesh, kept), chip


def _compile(name, function, arguments, flops, work, program: Program, topology, chip: Chip):
    batch_size, count = program.config.batch_size, program.mesh.size
    started = time.perf_counter()
    try:
        with gc_disabled():
            compiled = compile_for(topology, function, arguments)
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{batch_size} images do not fit {topology} ({first_line(error)}): raise "
            "--config.mesh.fsdp, lower --batch-per-device, or set "
            "--config.compute.tokenizer_remat=blocks"
        ) from error
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    reserved = memory.argument_size_in_bytes + results + memory.temp_size_in_bytes
    traffic = measure_traffic(compiled.as_text(), count)
    return Report(
        program=name,
        topology=topology,
        devices=count,
        batch_size=batch_size,
        batches=_batches(name, program),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=reserved,
        memory=chip.memory,
        flops=flops,
        work=work,
        links=traffic.links,
        traffic=traffic.memory,
        movers=traffic.movers if name == "train" else {},
        form=_form(name, program, batch_size // count),
        compute_seconds=flops * batch_size / count / chip.flops,
        memory_seconds=traffic.memory / chip.bandwidth,
        link_seconds=sum(traffic.links.values()) / chip.links,
        compile_seconds=seconds,
    )


def _form(name, program, images):
    """Whether images are whole or in stripes, and why."""
    if name == "sample":
        return f"whole, {images} at a time on a device"
    images, most = program.images_at_once, program.stripes
    if program.cache is not None:
        return f"latents, {images} at a time on a device"
    if most == 1:
        return f"whole, {images} at a time on a device"
    why = f"{images} at a time on a device leave a TPU's tiles empty"
    if program.config.compute.stripes:
        why = "config.compute.stripes"
    return f"up to {most} stripes each (models/stripes.py): {why}"


def _batches(name, program):
    if name == "sample":
        return "labels"
    cache = program.cache
    if cache is None:
        return "images"
    assumed = cache.manifest is None and (cache.images or cache.tokens)
    return f"{cache} (--cached sets it)" if assumed else str(cache)
