"""What all tests share: settings that must stand before jax and torch are imported."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

from without_torch import skip_without_torch

from repae_jax.utils import process_env

if os.environ.get("REPAE_WITHOUT_TORCH", "0") != "0":
    skip_without_torch()

# The tests' tensors are small: torch's threads would wait for each other longer than they work
# (a small VAE, forward and backward, on two busy cores: 6 s with two threads, 0.07 s with one).
os.environ.setdefault("OMP_NUM_THREADS", "1")

# libtpu, with which programs are compiled for TPUs, would look for one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# On a CPU, compiling takes the tests' time, not running: compile in haste, and nothing twice.
# (The emitters make faster kernels of a step in a third more time; a program in parts, for more
# cores than two, takes a quarter more. XLA ends a process that names a flag which its version does
# not know.)
_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jax").startswith("0.10."):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", _FLAGS)
process_env.choose_options()  # as the commands do, which tests run in processes of their own, too
# Programs and traces stay in memory, and a collection of garbage looks through all of them: with
# Python's own thresholds that is a sixth of the time.
gc.set_threshold(50_000, 20, 100)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="repae_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
