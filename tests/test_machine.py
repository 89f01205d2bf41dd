import os
import subprocess
import sys

import pytest

from repae_jax.utils.process_env import accelerated, choose_options, keep_memory

# A large block that a thread frees, again and again: how many pages does the system hand out?
SCRIPT = """
import ctypes, resource, sys, threading
from repae_jax.utils.process_env import keep_memory

if sys.argv[1] == "keep":
    assert keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
SIZE = 200 << 20

def use():
    block = libc.malloc(ctypes.c_size_t(SIZE))
    ctypes.memset(block, 1, SIZE)
    libc.free(block)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def _faults(how):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


def _on_glibc():
    import ctypes

    return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not sys.platform.startswith("linux") or not _on_glibc(), reason="needs glibc")
def test_freed_memory_is_used_again():
    kept, handed_back = _faults("keep"), _faults("not")
    assert handed_back > 50 * max(kept, 1)


def test_settings_of_the_environment_stand(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not keep_memory()


@pytest.fixture
def devices(monkeypatch):
    """The patterns of device files that are found, to be set: none so far."""
    found = set()
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(
        "repae_jax.utils.process_env.glob.glob", lambda p: [p] if p in found else []
    )
    return found


def test_nothing_changes_beside_an_accelerator(monkeypatch, devices):
    devices.add("/dev/nvidia[0-9]*")
    assert accelerated()
    assert not keep_memory()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not accelerated()


def test_convolutions_are_left_to_eigen_unless_the_environment_chose(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    assert choose_options()
    flags = os.environ["XLA_FLAGS"]
    assert flags.startswith("--xla_force_host_platform_device_count=8 --xla_cpu_experimental_ynn")
    assert not choose_options()
    assert os.environ["XLA_FLAGS"] == flags


def test_a_flag_is_set_only_where_the_compiler_knows_it(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(
        "repae_jax.utils.process_env.importlib.metadata.version", lambda name: "0.12.0"
    )
    assert not choose_options()
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize(("given", "left"), [("", 2), ("--xla_allow_excess_precision=true", 1)])
def test_options_of_nvidia_gpus_are_set_unless_the_environment_chose(
    monkeypatch, devices, given, left
):
    devices.add("/dev/nvidia[0-9]*")
    monkeypatch.setenv("XLA_FLAGS", given)
    assert choose_options()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[: len(flags) - left] == given.split()
    assert "--xla_gpu_enable_triton_gemm=false" in flags
    assert not choose_options()


def test_nothing_is_set_for_other_accelerators(monkeypatch, devices):
    devices.add("/dev/accel*")
    monkeypatch.setenv("XLA_FLAGS", "")
    assert accelerated()
    assert not choose_options()


def test_the_compiler_knows_the_options(monkeypatch, devices):
    devices.add("/dev/nvidia[0-9]*")
    monkeypatch.setenv("XLA_FLAGS", "")
    assert choose_options()
    script = "import jax; jax.jit(lambda x: x + 1)(1.0)"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


CONVOLVE = """
import sys
from repae_jax.utils.process_env import choose_options
if sys.argv[1] == "eigen":
    assert choose_options()
import jax, jax.numpy as jnp
def convolve(x, k):
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME",
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))
shapes = jnp.ones((4, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
print(jax.jit(convolve).lower(*shapes).compile().as_text().count("ynn_fusion"))
"""


def test_the_compiler_follows():
    """Its own choice is YNNPACK; should that change, this setting has nothing left to do."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def fusions(how):
        result = subprocess.run([sys.executable, "-c", CONVOLVE, how], env=environment,
                                capture_output=True, text=True, check=True)  # fmt: skip
        return int(result.stdout)

    assert fusions("eigen") == 0
    assert fusions("default") > 0
