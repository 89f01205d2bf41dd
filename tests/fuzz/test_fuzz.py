"""Each kind of file, changed in many ways for a few seconds. See `fuzz`."""

import os

import pytest

from fuzz import campaign
from fuzz.commands import chosen, run_command
from fuzz.report import Report
from fuzz.targets import TARGETS

# of all targets together, without the making of their files and the start of processes
SECONDS = float(os.environ.get("REPAE_FUZZ_SECONDS", "30"))
SEED = int(os.environ.get("REPAE_FUZZ_SEED", "0"))
COMMANDS = max(3, int(SECONDS / 60))


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """The process in which files are read."""
    worker = campaign.Worker(tmp_path_factory.mktemp("fuzz"))
    yield worker
    worker.close()


@pytest.mark.slow  # some thousand cases
@pytest.mark.parametrize("target", TARGETS)
def test_a_changed_file_is_read_unchanged_or_refused(target, worker, record_property):
    report = Report()
    report.add(target, campaign.fuzz(worker, target, SECONDS / len(TARGETS), SEED, least=3))
    record_property("fuzz", [target, dict(report.tallies[target].counts)])
    assert not report.faults(), report.text()


@pytest.mark.slow  # every case is a process that imports jax
@pytest.mark.parametrize("number", range(COMMANDS))
def test_a_command_refuses_a_changed_file_in_one_line(number, worker, tmp_path):
    target, case = chosen(worker, number, SEED)
    status, output, errors, peak = run_command(worker, target, case, tmp_path)
    told = f"{campaign.command(target, case)}\nstatus {status}, {peak} bytes\n{errors[-3000:]}"
    assert "Traceback" not in output + errors, told
    assert peak < campaign.COMMAND_MEMORY, told
    assert status in (0, 2), told
    if status == 2:
        assert errors.startswith("error: "), told
        assert errors.count("\n") == 1, told
