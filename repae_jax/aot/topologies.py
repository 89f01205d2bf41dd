"""Ahead-of-time compilation for absent devices.

XLA knows the slices of TPUs by name, and compiles for a GPU from its description.
"""

import contextlib
import os
from collections.abc import Iterator

import jax

from repae_jax.aot.chips import GPUS, parse_topology
from repae_jax.errors import UserError, first_line
from repae_jax.models.layers import attention_kernel
from repae_jax.utils.process_env import GPU_OPTIONS

# JAX's settings for --effort: numbers up to JAX 0.10, levels in later versions.
_EFFORTS = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
_LEVELS = ("jax_optimization_level", "jax_memory_fitting_level")
_QUICK = (
    dict.fromkeys(_EFFORTS, -1.0)
    if hasattr(jax.config, _EFFORTS[0])
    else dict.fromkeys(_LEVELS, "O1")
)
# XLA's description of an H100 or H200 (GpuTargetConfigProto).
_HOPPER = """
gpu_device_info {{
  name: "{name}" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: {memory} memory_bandwidth: {bandwidth} l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""
_GPU_OPTIONS = {**GPU_OPTIONS, "xla_gpu_autotune_level": 0}  # autotuning needs a GPU


@contextlib.contextmanager
def compiler(effort: str) -> Iterator[None]:
    """Set JAX's options for ahead-of-time compilation during the `with` block.

    Args:
      effort: "full" compiles as a run does; "quick" compiles a step of XL size in a minute or two
        instead of ten, and the program may be a little larger and slower.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # without a TPU there is no metadata server
    os.environ.setdefault(
        "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
    )  # no TPU that two processes could share
    settings = _QUICK if effort == "quick" else {}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def absent_devices(topology: str) -> list[jax.Device]:
    """Describe the devices of a topology such as "v5e:16x16" or "h200:8".

    Raises:
      UserError: the topology is unknown, or its compiler is not installed.
    """
    _, count = parse_topology(topology)
    get, package = (_gpus, "jax[cuda13]") if _of_gpus(topology) else (_tpus, "libtpu")
    try:
        devices = get(topology)
    except Exception as error:  # the plug-in raises no class of its own
        raise UserError(
            f"--topology {topology}: the compiler gives no such devices ({first_line(error)}); it "
            f"comes with `pip install {package}`, and knows the slices that are for rent"
        ) from error
    if len(devices) != count:
        raise UserError(f"--topology {topology} has {len(devices)} devices on {count} chips")
    return devices


def compile_for(topology: str, function, arguments) -> jax.stages.Compiled:
    """Compile a jitted function for arguments with shardings on `absent_devices(topology)`."""
    if not _of_gpus(topology):
        return function.lower(*arguments).compile()
    with attention_kernel("cudnn"):
        lowered = function.trace(*arguments).lower(lowering_platforms=("cuda",))
        return lowered.compile(compiler_options=_GPU_OPTIONS)


def _kind(topology):
    return topology.partition(":")[0]


def _of_gpus(topology):
    return _kind(topology) in GPUS


def _tpus(topology):
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if _kind(topology) == "v4" else {}
    return topologies.get_topology_desc(topology, "tpu", **options).devices


def _gpus(topology):
    from jax.experimental import topologies

    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the driver may be missing
    chip, count = parse_topology(topology)
    target = _HOPPER.format(
        memory=int(chip.memory), bandwidth=int(chip.bandwidth), name=_kind(topology)
    )
    return topologies.get_topology_desc(
        platform="cuda", target_config=target, topology=f"1x1x{count}"
    ).devices
