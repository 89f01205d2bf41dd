"""The launch files: linted, valid, and the local one run for real."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from fake_programs import fake
from runs import TINY, make_teacher

from repae_jax.runs.checkpoints import restore_latest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
# The custom resource definition of JobSet (config/components/crd in its repository).
JOBSET_CRD = os.environ.get("JOBSET_CRD")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    shellcheck = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    done = subprocess.run(
        [shellcheck, "-x", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())


def test_the_jobs_manifest_is_valid(jobset):
    import kubernetes_validate

    for replicated in jobset["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
        job["spec"] = replicated["template"]["spec"]
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.skipif(not JOBSET_CRD, reason="JOBSET_CRD names no file")
def test_the_set_of_jobs_is_valid(jobset):
    import jsonschema

    definition = yaml.safe_load(pathlib.Path(JOBSET_CRD).read_text())
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1alpha2"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    jsonschema.validate(jobset, schema)


def closed(schema):
    """A schema that refuses names it does not know, as a strict API server does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema["properties"]:
        schema.setdefault("additionalProperties", False)
    return schema


def test_the_manifest_runs_a_command_that_exists(jobset):
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    words = [word for word in container["args"] if not word.startswith("--workdir")]
    config = next(word for word in words if word.startswith("--config="))
    assert (ROOT / config.partition("=")[2]).is_file()
    from repae_jax.config.overrides import PREFIX, read_config

    overrides = [word for word in words if word.startswith(PREFIX)]
    assert read_config(config.partition("=")[2], overrides).mesh.fsdp == 8
    hosts = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert hosts * chips == int(rows) * int(columns)


def test_the_container_file_copies_what_there_is():
    for line in (LAUNCH / "gke" / "Dockerfile").read_text().splitlines():
        if copied := re.match(r"COPY (.+) \S+$", line):
            for name in copied[1].split():
                assert (ROOT / name).exists(), line


@pytest.mark.parametrize(
    ("statuses", "result", "calls"), [([75, 1, 0], 0, 3), ([75, 2], 2, 2), ([75] * 9, 75, 4)]
)
def test_again_repeats_what_may_be_repeated(statuses, result, calls, tmp_path):
    body = f"echo call >> {tmp_path}/calls; list=({' '.join(map(str, statuses))})\n"
    body += f'exit "${{list[$(wc -l < {tmp_path}/calls) - 1]}}"'
    environment = {**fake(tmp_path, "job", body), "AGAIN_PAUSE": "0", "AGAIN_LIMIT": "3"}
    done = subprocess.run(["bash", LAUNCH / "again.sh", "job"], env=environment, check=False)
    assert done.returncode == result
    assert (tmp_path / "calls").read_text().count("call") == calls


def test_again_ends_at_a_signal_between_two_tries(tmp_path):
    environment = fake(tmp_path, "job", f"echo call >> {tmp_path}/calls; exit 75")
    process = subprocess.Popen(
        ["bash", LAUNCH / "again.sh", "job"], env={**environment, "AGAIN_PAUSE": "60"}
    )
    while not (tmp_path / "calls").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 75
    assert (tmp_path / "calls").read_text().count("call") == 1


def test_again_passes_a_signal_on_and_does_not_repeat(tmp_path):
    body = f"trap 'echo saved > {tmp_path}/saved; exit 75' TERM; touch {tmp_path}/up\n"
    body += "for _ in {1..600}; do sleep 0.1; done"
    process = subprocess.Popen(
        ["bash", LAUNCH / "again.sh", "job"], env=fake(tmp_path, "job", body)
    )
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 75
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (2, False), (75, True), (134, True)])
def test_slurm_goes_back_into_the_queue(status, requeued, tmp_path):
    fake(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/queue.txt')
    environment = fake(tmp_path, "srun", f'echo "$@" > {tmp_path}/run.txt; exit {status}')
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "--workdir", "runs/x"],
        env={**environment, "SLURM_JOB_ID": "42"}, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert "repae_jax train --distributed --workdir runs/x" in (tmp_path / "run.txt").read_text()
    assert (tmp_path / "queue.txt").exists() == requeued
    assert not requeued or (tmp_path / "queue.txt").read_text() == "requeue 42\n"


def test_tpu_vm_asks_again_after_a_preemption(tmp_path):
    # The slice is there, is lost during the training, and is there again.
    fake(tmp_path, "sleep", "exit 0")
    fake(tmp_path, "git", 'touch "${@: -2:1}"')
    environment = fake(
        tmp_path,
        "gcloud",
        f"""
log={tmp_path}/log; echo "$*" >> "$log"
case "$*" in
  *"queued-resources describe"*)
    [ -e {tmp_path}/exists ] && cat {tmp_path}/exists || exit 1 ;;
  *"queued-resources create"*) echo ACTIVE > {tmp_path}/exists ;;
  *"queued-resources delete"*) rm {tmp_path}/exists ;;
  *"bash launch/again.sh"*)
    if [ -e {tmp_path}/trained ]; then exit 0; fi
    touch {tmp_path}/trained; echo SUSPENDED > {tmp_path}/exists; exit 255 ;;
esac""",
    )
    settings = dict(NAME="r", ZONE="z", TYPE="v6e-64", RUNTIME="v2", BUCKET="b")
    done = subprocess.run(
        ["bash", LAUNCH / "tpu_vm.sh", "train", "--workdir", "/mnt/bucket/my run"],
        env={**environment, **settings}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "log").read_text()
    kinds = re.findall(r"queued-resources (create|delete)|bash launch/(again\.sh)", log)
    assert ["".join(kind) for kind in kinds] == ["create", "again.sh", "delete", "create",
                                                 "again.sh"]  # fmt: skip
    assert r"train --distributed --workdir /mnt/bucket/my\ run" in log


def test_tpu_vm_names_all_that_is_not_set_before_it_asks_for_a_slice(tmp_path):
    environment = fake(tmp_path, "gcloud", f"touch {tmp_path}/asked")
    for words, missing in ((["train"], "ZONE TYPE BUCKET"), (["delete"], "ZONE")):
        done = subprocess.run(
            ["bash", LAUNCH / "tpu_vm.sh", *words],
            env={**environment, "NAME": "r", "RUNTIME": "v2"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert f"tpu_vm.sh: set {missing}, see" in done.stderr
    assert not (tmp_path / "asked").exists()


@pytest.mark.slow  # four processes that compile the step
@pytest.mark.skipif(not os.environ.get("REPAE_THOROUGH"), reason="minutes: set REPAE_THOROUGH=1")
def test_local_processes_train_and_survive_one_that_dies(tmp_path):
    teacher = make_teacher(tmp_path)
    workdir = tmp_path / "runs" / "run"
    words = ["--config", TINY, f"--config.teachers.small.weights={teacher}", "--quiet"]
    words += ["--config.run.steps=400", "--config.run.checkpoint_every=50"]
    environment = {**os.environ, "PROCESSES": "2", "PYTHON": sys.executable, "AGAIN_PAUSE": "0",
                   "LOCAL_GRACE": "60"}  # fmt: skip
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests" / "helpers"), *sys.path]
    )
    process = subprocess.Popen(
        ["bash", LAUNCH / "local.sh", *words, "--workdir", str(workdir)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 600  # beside other tests
    while not (workdir / "checkpoints" / "50").is_dir():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    subprocess.run(
        ["pkill", "-KILL", "-f", "--", f"--workdir {workdir}.*--process-index 1"], check=True
    )
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    assert "again.sh: status" in output
    assert "resuming from step" in output
    assert int(restore_latest(workdir)["step"]) == 400
    assert (tmp_path / "runs" / "run-process-1.log").is_file()


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_quickstart_explains_itself(option):
    command = ["bash", str(LAUNCH / "quickstart.sh"), "runs/x", option]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "bash launch/quickstart.sh [--text] [WORKDIR]" in done.stdout
    assert "set -" not in done.stdout


def test_an_unknown_option_of_the_quickstart_is_named():
    command = ["bash", str(LAUNCH / "quickstart.sh"), "--txt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: there is no option --txt; --help shows them\n"
