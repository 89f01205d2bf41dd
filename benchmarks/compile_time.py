"""How long the train step takes to trace and compile, anew and from the compilation cache.

    python benchmarks/compile_time.py [CONFIG] [--config.compute.scan_blocks=True ...]

CONFIG is FILE[:RECIPE] in configs/, by default the paper's main recipe (SiT-XL/2 with f8d4).
Nothing is allocated or run. Each line is a process of its own, both with one new cache folder.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
VARIABLE = "REPAE_COMPILE_TIME"  # set in the processes that measure


def measure(config_file: str, overrides: list[str]) -> None:
    """Trace, lower and compile; prints the seconds of each as JSON."""
    from repae_jax.utils import process_env

    process_env.prepare()  # as the command line does
    from repae_jax.config.overrides import read_config
    from repae_jax.parallel.mesh import make_mesh
    from repae_jax.runs.build import build_models
    from repae_jax.training.program import Program, gc_disabled

    config = read_config(str(CONFIGS / config_file), overrides)
    program = Program(config, build_models(config), make_mesh())
    arguments = program.arguments()
    clock = [time.perf_counter()]

    def lap():
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    with gc_disabled():  # as the loop makes its first step
        traced = program.step.trace(*arguments)
        seconds = {"trace": lap()}
        lowered = traced.lower()
        seconds["lower"] = lap()
        lowered.compile()
        seconds["compile"] = lap()
    print(json.dumps(seconds))


def main() -> None:
    """Measure twice, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", nargs="?", default="imagenet256_repae_sdvae.py")
    parser.add_argument("--batch-size", type=int, default=8)
    options, overrides = parser.parse_known_args()
    overrides = [f"--config.batch_size={options.batch_size}", *overrides]
    if os.environ.get(VARIABLE):
        measure(options.config, overrides)
        return
    print(f"{options.config} {' '.join(overrides)}, {os.cpu_count()} cores\n")
    print("| | trace, s | lower, s | compile, s | all, s |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, VARIABLE: "1", "JAX_COMPILATION_CACHE_DIR": cache}
        for name in ("anew", "from the cache"):
            command = [sys.executable, __file__, options.config, *overrides[1:]]
            command.append(f"--batch-size={options.batch_size}")
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            seconds = json.loads(done.stdout.splitlines()[-1])
            cells = [f"{value:.1f}" for value in (*seconds.values(), sum(seconds.values()))]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        size = sum(path.stat().st_size for path in pathlib.Path(cache).iterdir())
    print(f"\n{size / 1e6:.0f} MB in the cache")


if __name__ == "__main__":
    main()
