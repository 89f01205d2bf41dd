"""Programs compiled for TPUs and GPUs that are not there."""

import dataclasses
import importlib.util
import json

import pytest
import tiny
from runs import TINY

from repae_jax.aot import report as aot_report
from repae_jax.aot.chips import GPUS, TPUS, parse_topology
from repae_jax.cli import main
from repae_jax.commands.compile import describe
from repae_jax.errors import UserError


def test_a_topology_is_a_chip_and_a_shape():
    assert parse_topology("v5e:16x16") == (TPUS["v5e"], 256)
    assert parse_topology("v5p:4x4x8") == (TPUS["v5p"], 128)
    assert parse_topology("h200:8") == (GPUS["h200"], 8)


@pytest.mark.parametrize(
    "topology", ["v5e", "v9:2x2", "v5e:2xtwo", "v5e-16", "", "h200", "h200:2x2", "h200:0",
                 "v5e:²x2", "h200:" + "9" * 5000],
)  # fmt: skip
def test_what_is_no_topology_is_said(topology, capsys):
    assert main(["compile", "--config", TINY, "--topology", topology]) == 2
    assert "such as v5e:16x16" in capsys.readouterr().err


def test_a_slice_that_nobody_rents_is_said(capsys):
    pytest.importorskip("libtpu")
    words = ["--topology", "v5e:3x7", "--batch-per-device", "1"]
    assert main(["compile", "--config", TINY, *words]) == 2
    assert "--topology v5e:3x7" in capsys.readouterr().err


@pytest.mark.slow  # the TPU compiler takes half a minute for the smallest step
def test_the_step_is_compiled_for_a_slice(capsys):
    pytest.importorskip("libtpu")
    words = ["--topology", "v5e:2x4", "--effort", "quick", "--json", "--config.mesh.fsdp=4"]
    words += ["--config.mesh.smallest=64", "--config.tokenizer.weights=none.safetensors"]
    assert main(["compile", "--config", f"{TINY}:repa", *words]) == 0
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


def test_what_a_gpus_compiler_comes_with_is_said(capsys):
    if importlib.util.find_spec("jax_cuda13_plugin"):
        pytest.skip("it is here")
    words = ["--topology", "h200:1", "--config.tokenizer.weights=none.safetensors"]
    assert main(["compile", "--config", f"{TINY}:repa", *words]) == 2
    assert "pip install jax[cuda13]" in capsys.readouterr().err


@pytest.mark.slow  # half a minute in the compiler for GPUs
def test_the_step_is_compiled_for_gpus(capsys):
    pytest.importorskip("jax_cuda13_plugin")
    words = ["--topology", "h100:2", "--json", "--config.mesh.fsdp=2", "--config.mesh.smallest=64"]
    words += ["--config.tokenizer.weights=none.safetensors", "--config.dtype=bfloat16"]
    assert main(["compile", "--config", f"{TINY}:repa", *words]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["devices"] == 2
    assert 0 < report["arguments"] < report["peak"] < report["memory"]
    assert report["links"]["all-gather"] > 0


def test_the_sweep_finds_the_largest_batch_that_fits(monkeypatch, capsys):
    tried = []

    def compile_train(config, topology, kept):
        assert kept == ("tokens",)
        per_device = config.batch_size // 8
        tried.append(per_device)
        if per_device > 20:
            raise aot_report.OutOfMemory("too large")
        return report(config.batch_size, peak=per_device, memory=limit)

    monkeypatch.setattr(aot_report, "compile_train", compile_train)
    for limit in (1, 2, 7, 13):
        tried.clear()
        found = aot_report.sweep(tiny.get_config(), "v5e:2x4")
        assert found.batch_size == limit * 8
        assert len(tried) == len(set(tried)) <= 9
    limit = 0
    with pytest.raises(UserError, match="not one image per device fits v5e:2x4"):
        aot_report.sweep(tiny.get_config(), "v5e:2x4")


def report(batch_size, **values):
    fields = dict.fromkeys((field.name for field in dataclasses.fields(aot_report.Report)), 1)
    return aot_report.Report(
        **{**fields, "links": {}, "movers": {}, "form": "whole", "batch_size": batch_size, **values}
    )


def test_a_report_is_readable():
    text = describe(report(64, devices=8, peak=12e9, memory=16e9, compute_seconds=0.2,
                           memory_seconds=0.1, link_seconds=0.05))  # fmt: skip
    assert "12.00 GB at the peak of 16.0: fits" in text
    assert "200.0 ms, 320 images/s, 100 % of the peak" in text
    assert "DOES NOT FIT" in describe(report(64, peak=17, memory=16))
