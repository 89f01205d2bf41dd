"""Files as others save them, and the command lines that read them."""

import numpy as np


def torch_save(path, content):
    import torch

    def tensors(node):
        if isinstance(node, dict):
            return {key: tensors(value) for key, value in node.items()}
        return (
            torch.from_numpy(np.ascontiguousarray(node)) if isinstance(node, np.ndarray) else node
        )

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(content), path)


def safetensors_save(path, tensors):
    from safetensors.numpy import save_file

    save_file(
        {name: np.ascontiguousarray(a) for name, a in tensors.items()}, path, {"format": "pt"}
    )


def inspect(name):
    return lambda folder, _: ["inspect", str(folder / name)]


def convert(name, target, *more):
    return lambda folder, empty: ["convert", str(folder / name), str(empty / target), *more]
