"""Some of the cases through the command line itself."""

import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from fuzz import campaign, mutations
from fuzz.targets import TARGETS

_MARK = "peak resident bytes: "
# The command, and how much of the memory it and what it started had at most.
_WRAPPER = f"""
import resource, subprocess, sys
status = subprocess.run([sys.executable, "-m", "repae_jax", *sys.argv[1:]]).returncode
print("{_MARK}", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(status)
"""


def chosen(worker: campaign.Worker, number: int, seed: int) -> tuple[str, mutations.Case]:
    """A case of one of the targets that a command reads: another one for every number."""
    names = [name for name, target in TARGETS.items() if target.words]
    rng = random.Random(f"{seed} commands")
    rng.shuffle(names)
    name = names[number % len(names)]
    stream = campaign.cases(worker, name, f"{seed} {number}")
    for case in stream:
        if case[1] in ("set", "remove", "cut", "flip", "prefix"):
            return name, case
    raise AssertionError


def run_command(
    worker: campaign.Worker, name: str, case: mutations.Case, folder: pathlib.Path
) -> tuple[int, str, str, int]:
    """(status, stdout, stderr, peak bytes) of the target's command on changed files.

    Raises:
      subprocess.TimeoutExpired: it hangs.
    """
    target = TARGETS[name]
    changed, empty = folder / "changed", folder / "empty"
    mutations.copy_tree(worker.seed(name), changed)
    mutations.apply(changed, case)
    empty.mkdir()
    words = target.words(changed, empty)
    done = subprocess.run(
        [sys.executable, "-c", _WRAPPER, *words],
        capture_output=True, text=True, check=False, timeout=campaign.SECONDS, cwd=folder,
        env={**os.environ, "PYTHONPATH": _package()},
    )  # fmt: skip
    output, _, peak = done.stdout.rpartition(_MARK)
    return done.returncode, output, done.stderr, int(peak)


def _package():
    import repae_jax

    return str(pathlib.Path(repae_jax.__file__).parents[1])


def tally(worker: campaign.Worker, seconds: float, seed: int) -> campaign.Tally:
    """Run commands until the seconds have passed, as a target of their own."""
    found = campaign.Tally()
    deadline, number = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        name, case = chosen(worker, number, seed)
        number += 1
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome = _outcome(*run_command(worker, name, case, pathlib.Path(folder)))
            except subprocess.TimeoutExpired:
                outcome = "hang", ""
            except Exception as error:
                outcome = "impossible", str(error)
        if outcome[0] == "impossible":
            continue
        found.counts[outcome[0]] += 1
        if outcome[0] not in campaign.GOOD:
            found.faults.append((outcome[0], [name, *case], outcome[1]))
    return found


def _outcome(status, output, errors, peak):
    if "Traceback" in output + errors or status not in (0, 2):
        return "exception", f"status {status} | {errors.strip()[-200:]}"
    if peak > campaign.COMMAND_MEMORY:
        return "memory", f"{peak} bytes"
    if status == 2 and not (errors.startswith("error: ") and errors.count("\n") == 1):
        return "message", errors[:300]
    return ("refused" if status == 2 else "same"), ""
