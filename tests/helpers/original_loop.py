"""The original implementation's training steps, run from a checkout of it.

What computes is the checkout's own code, down to the statements of the loops in `train_repae.py`
and `train_ldm_only.py`: they are taken from the source at run time, since the scripts cannot be
imported without a GPU machine's packages. Around them stand plain replacements: one process in
float32 instead of accelerate, and random numbers from a list.
"""

import argparse
import ast
import contextlib
import copy
import functools
import inspect
import pathlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from unittest import mock

import torch
from checkouts import code_of, define, function_of
from original_networks import modules
from parity import ORIGINAL

REPAE, LDM_ONLY = "train_repae.py", "train_ldm_only.py"


class PlainAccelerator:
    """What the loops ask of accelerate, on one process in float32."""

    sync_gradients = True
    accumulate = autocast = staticmethod(lambda *args: contextlib.nullcontext())
    backward = staticmethod(lambda loss: loss.backward())
    clip_grad_norm_ = staticmethod(torch.nn.utils.clip_grad_norm_)
    gather = unwrap_model = staticmethod(lambda x: x)
    log = staticmethod(lambda logs, step: None)


def default_args(script: str, **changes) -> argparse.Namespace:
    """The script's own command-line defaults, with `changes`."""
    scope = {"argparse": argparse, "SiT_models": modules().sit.SiT_models}
    args = _functions(script, ("parse_args",), scope)["parse_args"](["--exp-name", "none"])
    for name, value in changes.items():
        assert hasattr(args, name), name
        setattr(args, name, value)
    return args


def default_ema_decay(script: str) -> float:
    """The decay of the moving average where the loop gives none."""
    scope = {"torch": torch, "OrderedDict": OrderedDict}
    update_ema = _functions(script, ("update_ema",), scope)["update_ema"]
    return inspect.signature(update_ema).parameters["decay"].default


class Training:
    """The original's networks, optimizers and loop, one step at a time.

    Args:
      script: `REPAE` or `LDM_ONLY`.
      args: its command-line arguments.
      networks: the loop's variables `model`, and for `REPAE` `vae` and `vae_loss_fn`.
      ema_decay: the loop uses its own default, by which three steps move next to nothing.
    """

    def __init__(
        self, script: str, args, networks: Mapping[str, torch.nn.Module], ema_decay: float
    ):
        names = ("update_ema", "requires_grad", "sample_posterior")
        functions = _functions(script, names, {"torch": torch, "OrderedDict": OrderedDict})
        functions |= _functions("utils.py", ("preprocess_imgs_vae",), {"torch": torch})
        ema = copy.deepcopy(networks["model"])
        functions["requires_grad"](ema, False)
        functions["update_ema"](ema, networks["model"], decay=0)
        self.ema = ema
        self.scope = {
            "torch": torch,
            "accelerator": PlainAccelerator(),
            "progress_bar": mock.Mock(),
            "args": args,
            "epoch": 0,
            "global_step": 0,
            "ema": ema,
            **networks,
            **functions,
            "update_ema": functools.partial(functions["update_ema"], decay=ema_decay),
            "requires_grad": functools.partial(self._requires_grad, functions["requires_grad"]),
        }
        optimizers, self._step = _loop(script)
        exec(optimizers, self.scope)

    def step(self, raw_image, labels, zs, draws: Iterable, **variables) -> dict[str, float]:
        """One pass of the loop's body; returns what it logs.

        Args:
          raw_image: uint8 (B, 3, H, W).
          labels: (B,).
          zs: teachers' tokens, (B, N, D_k) each.
          draws: (name of the torch function, its result) in the order of the calls.
          variables: further variables of the loop.
        """
        self.scope.update(raw_image=raw_image, labels=labels, zs=zs, **variables)
        with _injected(draws):
            exec(self._step, self.scope)
        return self.scope["logs"]

    def _requires_grad(self, function, model, flag=True):
        # The original lets its fixed position table train by this call; here it stays fixed.
        function(model, flag)
        if model is self.scope["model"]:
            model.pos_embed.requires_grad = False


def _functions(script, names, scope):
    """The script's top-level functions of these names; those that it lacks are left out."""
    return define(pathlib.Path(ORIGINAL) / script, names, scope)


def _loop(script):
    """Code of the script's `main`: that which makes the optimizers, and that of one step."""
    path = pathlib.Path(ORIGINAL) / script
    main = function_of(path, "main")
    optimizers = [n for n in main.body if "torch.optim.AdamW" in ast.unparse(n)]
    (body,) = (
        node.body
        for node in ast.walk(main)
        if isinstance(node, ast.For) and ast.unparse(node.iter) == "train_dataloader"
    )
    text = [ast.unparse(node) for node in body]
    # From behind the teachers to the log: forward and backward passes, updates, moving average.
    (start,) = (i for i, line in enumerate(text) if line.startswith("with torch.no_grad()"))
    (end,) = (i for i, line in enumerate(text) if line.startswith("if accelerator.sync_gradients:"))
    return tuple(code_of(nodes, path) for nodes in (optimizers, body[start + 1 : end + 1]))


@contextlib.contextmanager
def _injected(draws):
    """torch's random functions give `draws` in order; another call, shape or number is an error."""
    draws = iter(draws)

    def replacement(name):
        def draw(*args, **kwargs):
            expected, value = next(draws)
            shape = args[0].shape if name == "randn_like" else torch.empty(*args).shape
            assert (name, shape) == (expected, value.shape)
            return value

        return draw

    names = ("rand", "randn", "randn_like")
    with mock.patch.multiple(torch, **{name: replacement(name) for name in names}):
        yield
    assert next(draws, None) is None
