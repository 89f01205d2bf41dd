"""The schedule of a study: each run in its own process, after the run whose VAE it takes."""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from repae_jax.errors import RUN_AGAIN, TryAgain, UserError
from repae_jax.study.plan import Job, jobs
from repae_jax.utils.signals import stop_event

LOG = "study.log"  # in a run's folder: its output
CORES = "REPAE_STUDY_CORES"  # in a run's environment: the numbers of the cores that it may use


def prepare(words: Sequence[str]) -> None:
    """Run a command of `repae` in a separate process, whose end frees its memory and devices.

    Raises:
      UserError: the command failed; it has printed its error.
      TryAgain: the command was interrupted.
    """
    with (
        stop_event() as stop,
        subprocess.Popen([sys.executable, "-m", "repae_jax", *words]) as process,
    ):
        while process.poll() is None:
            if stop.wait(0.2):
                process.terminate()
                process.wait()
    if stop.is_set():
        raise TryAgain("interrupted; run the same command to resume")
    if process.returncode:
        raise UserError("the shared parts of the runs could not be made, see above")


def run_all(
    study: ConfigDict,
    output: pathlib.Path,
    command: Callable[[Job], Sequence[str]],
    done: Callable[[Job], bool],
    *,
    side_by_side: int = 1,
    progress: bool = True,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Run all jobs without a result, `side_by_side` at a time.

    Each next run is the first in the order of `jobs` whose VAE is trained. Concurrent runs share
    the processor's cores equally, if the system supports core affinity. After a failure no further
    run starts, and the study ends when the current runs have ended. SIGINT and SIGTERM also end the
    current runs, which save their state.

    Args:
      study: the study.
      output: the study's folder.
      command: job -> the words of the command that runs it.
      done: job -> whether it has a result.
      side_by_side: number of concurrent processes.
      progress: show a bar.
      check: raises an error if no further run may start.

    Raises:
      UserError: a run failed; names its log.
      TryAgain: the study or one of its runs was interrupted.
    """
    from tqdm import tqdm

    left = [job for job in jobs(study) if not done(job)]
    unfinished = set(left)
    turn = threading.Condition()  # guards both
    failed: list[Exception] = []
    running: set[subprocess.Popen] = set()
    told: set[subprocess.Popen] = set()
    ended: list[Job] = []

    def take():
        """The first job whose VAE is trained, once there is one; None at the end."""
        with turn:
            while left and not failed and not stop.is_set():
                for job in left:
                    if Job(study.arms[job.arm].vae, job.seed) not in unfinished:
                        left.remove(job)
                        return job
                turn.wait(0.5)
        return None

    def work(share):
        while job := take():
            try:
                check()
                _run(command(job), job, output, share, running, stop)
            except Exception as error:
                failed.append(error)
                return
            with turn:
                unfinished.remove(job)
                turn.notify_all()
            ended.append(job)

    total, shares = len(jobs(study)), divide_cores(side_by_side)
    with (
        stop_event() as stop,
        tqdm(total=total, initial=total - len(left), unit="run", disable=not progress) as bar,
        concurrent.futures.ThreadPoolExecutor(side_by_side) as pool,
    ):
        workers, shown = [pool.submit(work, share) for share in shares], 0
        try:
            while concurrent.futures.wait(workers, timeout=0.5).not_done:
                if stop.is_set():
                    for process in list(running - told):
                        process.terminate()  # once: it saves and ends
                        told.add(process)
                for job in ended[shown:]:
                    bar.set_postfix_str(str(job), refresh=False)
                    bar.update()
                    shown += 1
            bar.update(len(ended) - shown)
            for worker in workers:
                worker.result()  # raises what no run has raised
        except BaseException:
            stop.set()  # the workers take no further run
            for process in list(running):
                process.terminate()
            raise
    if stop.is_set():
        raise TryAgain("interrupted; run the same command to resume")
    if failed:
        raise failed[0]


def divide_cores(count: int) -> list[set[int] | None]:
    """Divide the cores among `count` concurrent processes; None stands for all cores.

    Raises:
      UserError: `count` is below 1 or above the number of cores.
    """
    if count < 1:
        raise UserError(f"--jobs is {count}: give at least 1")
    if count == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * count
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise UserError(f"--jobs is {count}, but there are {len(cores)} cores: use at most those")
    return [set(cores[number::count]) for number in range(count)]


def _run(words, job, output, share, running, stop):
    folder = job.workdir(output)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    environment = dict(os.environ)
    if share is not None:
        environment[CORES] = ",".join(map(str, sorted(share)))
    with (
        open(log, "a") as file,
        subprocess.Popen(
            [sys.executable, "-m", "repae_jax", *words],
            stdout=file, stderr=subprocess.STDOUT, env=environment,
        ) as process,
    ):  # fmt: skip
        running.add(process)
        status = process.wait()
        running.remove(process)
    if status == RUN_AGAIN or (status and stop.is_set()):
        raise TryAgain(f"{job} was interrupted; run the same command to resume")
    if status:
        lines = log.read_text(errors="replace").strip().splitlines() or [""]
        raise UserError(f"{job} ended with status {status} ({lines[-1][:300]}); see {log}")


def restrict_cores() -> None:
    """Restrict this process to the cores that the study assigned; call it before JAX starts."""
    if CORES in os.environ:
        os.sched_setaffinity(0, {int(core) for core in os.environ[CORES].split(",")})


def check_share() -> None:
    """Raise UserError if this process shares cores but computes on another device than the CPU."""
    import jax

    if CORES in os.environ and jax.default_backend() != "cpu":
        raise UserError(
            f"--jobs shares the processor's cores, but runs here are on {jax.default_backend()}: "
            "leave it at 1"
        )
