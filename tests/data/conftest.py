"""Picture files to prepare."""

import numpy as np
import pytest
from PIL import Image
from preparing import FILES


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for name, (width, height, mode) in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(root / name)
    return root
