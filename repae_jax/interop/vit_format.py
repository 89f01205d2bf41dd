"""The format of a published ViT's files: names of tensors, prefixes, and what else they hold."""

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from repae_jax.interop import tables
from repae_jax.interop.extract import WRAPPERS, wrappers_before
from repae_jax.interop.tables import LINEAR, Rule, patch_layout

# "authors": files of the paper's own code, with timm's names for all families but CLIP and PE.
# "timm": timm's files of PE.
# "transformers": files on Hugging Face's hub. "transformers5": the state dict of the modules in
# transformers 5, which has renamed them.
Naming = Literal["authors", "timm", "transformers", "transformers5"]

_HOLDERS = ("state_dict", "model", "ema", "model_ema")  # entries in which training saves a network
_WRAPPED = f"(?:{'|'.join(map(re.escape, WRAPPERS))})*"


@dataclasses.dataclass(frozen=True)
class Format:
    """One family's files in one naming. `{i}` in a name stands for the block.

    Attributes:
      family: the `ViT.family` of the weights.
      naming: the origin of the names.
      tensors: rules of single tensors; every file of the format has the first one.
      layers: our layer -> the file's layer, each with a weight and a bias. A tuple names separate
        layers in the file that form one layer here, concatenated along their outputs in this order.
      prefixes: the possible prefixes of all names, the published one first.
      inside: the entry of a nested file that holds the tensors; flat files are accepted, too.
      left_out: regular expressions of names after the prefix: published tensors that the model
        does not use.
      beside: regular expressions of names without the prefix: other networks in the same file.
      biases: our layers whose biases a file may lack; they are then 0.
      misnamed: (wrong, right) parts of names that a published file misspells.
      holds: a name after the prefix that tells the format from others of the same names: every file
        has it.
      lacks: the same of a name that no file has.
    """

    family: str
    naming: Naming
    tensors: tuple[Rule, ...]
    layers: Mapping[str, str | tuple[str, ...]]
    prefixes: tuple[str, ...] = ("",)
    inside: str = ""
    left_out: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    misnamed: tuple[tuple[str, str], ...] = ()
    holds: str = ""
    lacks: str = ""

    def rules(self, prefix: str, patch_size: int) -> list[Rule]:
        """The table from the file's names, after the `fusions`, to our parameter paths."""
        rules = [Rule(prefix + rule.theirs, rule.ours, rule.layout) for rule in self.tensors]
        for ours, theirs in self.layers.items():
            name = prefix + (theirs if isinstance(theirs, str) else _whole(theirs))
            if _is_norm(ours):
                rules += tables.norm(name, ours)
            else:
                layout = patch_layout(patch_size) if ours == "patch_embed" else LINEAR
                rules += tables.layer(name, ours, layout)
        return rules

    def fusions(self, prefix: str, depth: int) -> Iterator[tuple[list[str], str]]:
        """(names of the separate tensors, name of the fused one) for all blocks and kinds."""
        for parts in self.layers.values():
            if isinstance(parts, str):
                continue
            for i, kind in itertools.product(range(depth), ("weight", "bias")):
                names = [f"{prefix}{name.format(i=i)}.{kind}" for name in (*parts, _whole(parts))]
                yield names[:-1], names[-1]

    def first_names(self, prefix: str) -> set[str]:
        """The file's names of all tensors outside the blocks and in the first block."""
        names = [rule.theirs for rule in self.tensors]
        for theirs in self.layers.values():
            parts = (theirs,) if isinstance(theirs, str) else theirs
            names += [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]
        return {prefix + name.format(i=0) for name in names}

    def entry_in(self, content: Mapping[str, Any]) -> str | None:
        """The entry of a file that holds the tensors; None for a flat file."""
        names = (self.inside, *_HOLDERS)
        return next((name for name in names if isinstance(content.get(name), Mapping)), None)

    def prefixes_in(self, names: Collection[str]) -> list[str]:
        """The possible prefixes of tensors with these names, with and without wrappers."""
        first = self.tensors[0].theirs
        possible = [
            wrapper + prefix
            for prefix in self.prefixes
            for wrapper in dict.fromkeys(("", *wrappers_before(names, prefix + first)))
        ]
        return [
            prefix
            for prefix in possible
            if (not self.holds or prefix + self.holds in names)
            and (not self.lacks or prefix + self.lacks not in names)
        ]

    def ignored(self, prefix: str, *more: str) -> list[str]:
        """Regular expressions of the names to ignore; `more` match names after the prefix."""
        start = re.escape(prefix)
        behind = [f"{start}(?:{expression})" for expression in (*self.left_out, *more)]
        return behind + [f"(?!{start}){_WRAPPED}(?:{expression})" for expression in self.beside]


def _whole(parts):
    # a name that no file has, with a single placeholder
    return f"{parts[0]}+"


def _is_norm(layer):
    return layer.rpartition("/")[2] in ("norm", "norm1", "norm2", "pre_norm")
