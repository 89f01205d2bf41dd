"""Picture files to prepare."""

import pytest
from pictures import write_pictures
from preparing import FILES


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "pictures"
    write_pictures(root, FILES)
    return root
