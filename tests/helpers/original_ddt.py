"""RAE's and diffusion-bench's backbones with a wide head, from checkouts of their code."""

import contextlib
import importlib
import os
import pathlib
import sys
import types

import torch

RAE = os.environ.get("RAE_ORIGINAL")
BENCH = os.environ.get("DIFFUSION_BENCH_ORIGINAL")
REASONS = {
    "ditdh": "set RAE_ORIGINAL to a checkout of bytetriper/RAE (it needs timm)",
    "ddt": "set DIFFUSION_BENCH_ORIGINAL to a checkout of diffusion-bench (it needs timm, einops)",
}
CHECKOUTS = {"ditdh": RAE, "ddt": BENCH}
# Modules that they import and that the models do without.
_UNUSED = {"regex": ["B"], "transformers": ["SwinModel"]}


def original_ddt(family, *, time_tokens=0, class_tokens=0, qk_norm=False, rms_norm=True, **config):
    """Their model: `family` is "ditdh" (RAE) or "ddt" (diffusion-bench)."""
    if family == "ditdh":
        options = dict(use_qknorm=qk_norm, use_rmsnorm=rms_norm, class_dropout_prob=0.1)
    else:
        arch = types.SimpleNamespace(num_t_tokens=time_tokens, num_c_tokens=class_tokens)
        reg = {key: config.pop(key) for key in ("enable_reg", "z_dim") if key in config}
        options = dict(cond_arch=arch, **reg)
        config["patch_size"] = [config["patch_size"]] * 2
    return module_of(family, "stage2.models.DDT").DiTwDDTHead(**config, **options).eval()


def module_of(family, name, further=None):
    """A module of the checkout, imported apart from the packages of the same names.

    `further` are modules to put in the place of theirs, with their attributes.
    """
    contents = {key: dict.fromkeys(names, object) for key, names in _UNUSED.items()}
    contents = (contents if family == "ditdh" else {}) | (further or {})
    stubs = {key: types.ModuleType(key) for key in contents}
    for key, stub in stubs.items():
        vars(stub).update(contents[key])
    before, path = dict(sys.modules), list(sys.path)
    sys.modules.update(stubs)
    folder = pathlib.Path(CHECKOUTS[family]) / "src"
    package = types.ModuleType("stage2")  # its own __init__ imports the whole training
    package.__path__ = [str(folder / "stage2")]
    models = types.ModuleType("stage2.models")
    models.__path__ = [str(folder / "stage2" / "models")]
    sys.modules.update({"stage2": package, "stage2.models": models})
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = path
        for key in sys.modules.keys() - before.keys():
            if key.partition(".")[0] in ("stage2", "utils", "configs", *stubs):
                del sys.modules[key]
        with contextlib.suppress(KeyError):
            sys.modules.update({key: before[key] for key in stubs if key in before})


def labelled(family, model, x, t, labels):
    """The prediction of either model."""
    labels = torch.as_tensor(labels)
    return model(x, t, labels) if family == "ditdh" else model(x, t, context=labels)
