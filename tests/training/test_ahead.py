"""Programs compiled for TPUs that are not there."""

import json
import pathlib

import pytest
import tiny

from repae_jax.cli import main
from repae_jax.parallel.chips import TPUS, parse_topology

TINY = str(pathlib.Path(tiny.__file__))


def test_a_topology_is_a_chip_and_a_shape():
    assert parse_topology("v5e:16x16") == (TPUS["v5e"], 256)
    assert parse_topology("v5p:4x4x8") == (TPUS["v5p"], 128)


@pytest.mark.parametrize("topology", ["v5e", "v9:2x2", "v5e:2xtwo", "v5e-16", ""])
def test_what_is_no_topology_is_said(topology, capsys):
    assert main(["compile", "--config", TINY, "--topology", topology]) == 2
    assert "such as v5e:16x16" in capsys.readouterr().err


def test_a_slice_that_nobody_rents_is_said(capsys):
    pytest.importorskip("libtpu")
    assert main(["compile", "--config", TINY, "--topology", "v5e:3x7"]) == 2
    assert "--topology v5e:3x7" in capsys.readouterr().err


@pytest.mark.slow  # the TPU compiler takes half a minute for the smallest step
def test_the_step_is_compiled_for_a_slice(capsys):
    pytest.importorskip("libtpu")
    words = ["--topology", "v5e:2x4", "--effort", "quick", "--json", "--config.mesh.fsdp=4"]
    words += ["--config.mesh.smallest=64", "--config.train=('sit','vae')"]
    words += ["--config.objective.adversarial_weight=0.0"]
    assert main(["compile", "--config", TINY, *words]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["devices"] == 8
    assert report["batch_size"] == 8
    # the state is divided by four, the batch by eight
    assert 0 < report["arguments"] < report["peak"] < report["memory"]
    assert report["flops"] > 0
    # parameters are gathered, gradients summed
    assert report["links"]["all-gather"] > 0
    assert report["links"].keys() & {"all-reduce", "reduce-scatter"}
    assert report["seconds"] == max(report[f"{k}_seconds"] for k in ("compute", "memory", "link"))
