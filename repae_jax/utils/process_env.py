"""What a process sets before JAX starts, so that it computes faster on what the machine has.

Memory: on a CPU XLA allocates a step's temporaries when it begins and frees them when it ends.
glibc hands blocks of that size back to the system, which then clears every page again at the next
step.

Convolutions: XLA's CPU compiler gives them to YNNPACK, which is slower than Eigen, its other
library, at the sizes of a VAE, and several times slower at a kernel's gradient.

NVIDIA GPUs: of what XLA's compiler tries for a matrix product, Triton's kernels make a step slower
than cuBLAS' alone. And where the program rounds to bfloat16, the compiler may leave rounding out;
it then writes a VAE's gradients in float32 for two readers, each twice the size.

How much each gives is in docs/performance.md.
"""

import ctypes
import glob
import importlib.metadata
import os

# Of glibc's malloc.h; mallopt takes them and an int.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NVIDIA = "/dev/nvidia[0-9]*"
_ACCELERATORS = (_NVIDIA, "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")
# Options of XLA's compilers.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
}
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_allow_excess_precision": False}
_KNOW_THEM = ("0.10.", "0.11.")  # XLA ends a process that names a flag which it does not know


def prepare() -> None:
    """`keep_memory` and `choose_options`: before JAX starts, and does nothing elsewhere.

    Also keeps JAX's own frames in tracebacks, by which an absent device is told from other errors.
    """
    os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")
    keep_memory()
    choose_options()


def choose_options() -> bool:
    """Set this machine's options of XLA's compiler, by XLA_FLAGS; before JAX starts.

    What the variable already says of one of them stands.

    Returns:
      whether there was anything to set.
    """
    if not importlib.metadata.version("jaxlib").startswith(_KNOW_THEM):
        return False
    if not accelerated():
        options = _CPU_OPTIONS
    elif accelerated((_NVIDIA,)):
        options = GPU_OPTIONS
    else:
        options = {}
    given = os.environ.get("XLA_FLAGS", "")
    new = [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in options.items()
        if name not in given
    ]
    if new:
        os.environ["XLA_FLAGS"] = " ".join([given, *new]).strip()
    return bool(new)


def keep_memory() -> bool:
    """Let malloc keep what is freed, for as long as this process lives; before JAX starts threads.

    Only where the host's processor is what computes, and glibc allocates; settings of malloc in
    the environment stand. The process then stays as large as it has been at most.

    Returns:
      whether it does.
    """
    if accelerated() or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        return False
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # One heap: a thread's own ones do not grow beyond 64 MiB, whatever is larger is mapped.
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
    return all([libc.mallopt(name, value) for name, value in settings.items()])


def accelerated(devices: tuple[str, ...] = _ACCELERATORS) -> bool:
    """Whether JAX may find a GPU or a TPU here, by the files that their drivers make."""
    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return False
    return any(glob.glob(pattern) for pattern in devices)
