"""`python -m fuzz`: a campaign, or one case once more. See `fuzz`."""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import threading
import time

import conftest  # noqa: F401  (the tests' settings of JAX)

from fuzz import campaign, commands
from fuzz.report import Report
from fuzz.targets import TARGETS


def main() -> int:
    """0: every case was read unchanged or refused."""
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("target", nargs="?", help="a target's name, or a part of names; all")
    parser.add_argument("case", nargs="?", help="repeat this one")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=float, default=0, help="seconds for whole commands")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--report", type=pathlib.Path, help="write the counts there, too")
    options = parser.parse_args()
    names = [name for name in TARGETS if (options.target or "") in name]
    if options.target in TARGETS:
        names = [options.target]
    if not names:
        parser.error(f"no target {options.target!r}; there are: {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory(prefix="repae_fuzz_") as root:
        if options.case:
            return _repeat(pathlib.Path(root), names[0], json.loads(options.case))
        report = _campaign(pathlib.Path(root), names, options)
    print(report.text())
    if options.report:
        options.report.write_text(report.text())
    return 1 if report.faults() else 0


def _repeat(root, name, case):
    worker = campaign.Worker(root)
    outcome, what, *seconds = worker.run(name, case)
    worker.close()
    print(f"{outcome}: {what}", *(f"({s:.2f} s)" for s in seconds))
    return 0 if outcome in campaign.GOOD else 1


def _campaign(root, names, options):
    report, lock, queue = Report(), threading.Lock(), list(names)
    each = options.seconds * options.jobs / len(names)

    def work(number):
        worker = campaign.Worker(root / str(number))
        while True:
            with lock:
                if not queue:
                    break
                name = queue.pop(0)
            started = time.monotonic()
            try:
                tally = campaign.fuzz(worker, name, each, options.seed)
            except RuntimeError as error:
                worker.close()
                tally = campaign.Tally(faults=[("died", [], str(error))])
                tally.counts["died"] += 1
            with lock:
                report.add(name, tally)
                line = ", ".join(f"{k} {v}" for k, v in tally.counts.items())
                print(f"{name}: {line} ({time.monotonic() - started:.0f} s)", flush=True)
        if number == 0 and options.commands:
            report.add("commands", commands.tally(worker, options.commands, options.seed))
        worker.close()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return report


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
