"""The part of the train step that an instruction of its compiled program comes from."""

import re

_NAME = re.compile(r'op_name="([^"]*)"')
# jvp(AutoencoderKL.decode), and transpose(jvp(...)) in the backward pass.
_NETWORK = re.compile(r"\bjvp\((\w+)(?:\.(\w+))?\)")
_BRANCH = re.compile(r"(^|/)(cond|branch_\d+\w*)/")  # the step's one branch updates the state
_PLUMBING = re.compile(r"while|body|cond|branch_\d+.*|checkpoint|rematted_computation|closed_call")


def part_of(attributes: str) -> str:
    """The network, layer and pass of an instruction, such as "SiT blocks_0 (backward)".

    Instructions outside a gradient are "update", or "others".

    Args:
      attributes: the attributes of the instruction in HLO text; `op_name` has the modules' names.
    """
    found = _NAME.search(attributes)
    if not found:
        return "unnamed"
    name = found[1]
    network = _NETWORK.search(name)
    if not network:
        if _BRANCH.search(name):
            return "update"
        return "losses" if "jvp(" in name else "others"
    layer = "/".join(_layers(name[network.end() :])[:2])
    backward = " (backward)" if "transpose(" in name else ""
    return f"{network[1]} {layer}{backward}" if layer else f"{network[1]}{backward}"


def _layers(path):
    """The names of modules in a path, without those of methods, transformations and operations."""
    names = [name for name in path.strip("/)").split("/")[:-1] if name]
    return [n for n in names if "(" not in n and "." not in n and not _PLUMBING.fullmatch(n)]
