"""DiffAug from its description, with given uniform numbers."""

import torch


def diff_augment(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) and numbers (B, 5); one image at a time."""
    return torch.stack([_one(image, *row) for image, row in zip(x, numbers, strict=True)])


def _one(image, down, right, brightness, saturation, contrast):
    image = _moved(_moved(image, down, 1), right, 2)
    image = image + brightness - 0.5
    gray = image.mean(0, keepdim=True)
    image = gray + 2 * saturation * (image - gray)
    mean = image.mean()
    return mean + (contrast + 0.5) * (image - mean)


def _moved(image, number, axis):
    side = image.shape[axis]
    most = round(side * 0.125)
    shift = int(number * (2 * most + 1)) - most
    places = torch.arange(side) + shift
    inside = (places >= 0) & (places < side)
    shape = [1, 1, 1]
    shape[axis] = side
    return image.index_select(axis, places.clamp(0, side - 1)) * inside.view(shape)
