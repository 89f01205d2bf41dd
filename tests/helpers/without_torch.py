"""Skips what needs torch: REPAE_WITHOUT_TORCH=1, for environments without requirements-torch.txt.

The import of such a package skips the test, or the file, in which it stands. Without the variable
it fails: an environment that lost torch passes no test by skipping it.
"""

import importlib.abc
import importlib.machinery
import sys

import pytest

# The packages of requirements-torch.txt, and torchvision, by the names they are imported as.
PACKAGES = ("torch", "torchvision", "diffusers", "timm", "torch_fidelity", "cleanfid")


class Skipping(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `PACKAGES`, and skips when one is loaded."""

    def find_spec(self, name, path=None, target=None):
        """The spec of a package that is not there; other packages may ask for it and go on."""
        if name.partition(".")[0] in PACKAGES:
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        """Skip the test that imports it."""
        pytest.skip(f"needs {spec.name}: REPAE_WITHOUT_TORCH is set", allow_module_level=True)

    def exec_module(self, module):
        """Never reached."""


def skip_without_torch() -> None:
    """From now on, an import of torch, or of what needs it, skips."""
    sys.meta_path.insert(0, Skipping())
