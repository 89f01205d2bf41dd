import jax
import numpy as np
import pytest
import torch
import torch_inception

from repae_jax.errors import UserError
from repae_jax.interop.inception import inception_shapes, load_inception, read_inception


@pytest.fixture(scope="module")
def published():
    """name -> zeros of the shapes that torch-fidelity's network has; they take no memory."""
    with torch.device("meta"):
        state = torch_inception.TorchInception().state_dict()
    return {name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in state.items()}


@pytest.fixture
def write(tmp_path):
    def write(tensors):
        path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
        zeros = {name: torch.zeros(()).expand(array.shape) for name, array in tensors.items()}
        torch.save(zeros, path)
        return path

    return write


def without_counters(tensors):
    return {n: a for n, a in tensors.items() if not n.endswith("num_batches_tracked")}


def test_a_published_file_is_read(published, write):
    # the published files have no counters; a network's own state dict does
    for tensors in (published, without_counters(published)):
        variables = read_inception(write(tensors))
        shapes = jax.tree.map(np.shape, variables)
        assert shapes == jax.tree.map(lambda leaf: leaf.shape, inception_shapes())


def test_all_tensors_but_the_bias_are_used(published):
    used = jax.tree.leaves(load_inception(published))
    assert len(used) == len(without_counters(published)) - 1
    sizes = sum(array.size for name, array in without_counters(published).items())
    assert sum(leaf.size for leaf in used) == sizes - 1008


def test_a_missing_file_says_where_to_get_it(tmp_path):
    address = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception"
    with pytest.raises(UserError, match=rf"no InceptionV3 weights at .*missing.pth.*{address}"):
        read_inception(tmp_path / "missing.pth")


def test_a_missing_tensor_is_named(published, write):
    tensors = {n: a for n, a in published.items() if n != "Mixed_7c.branch_pool.bn.running_var"}
    path = write(tensors)
    with pytest.raises(UserError, match=r"6726825d.pth: .*7c.branch_pool.bn.running_var.* missing"):
        read_inception(path)


def test_another_networks_tensor_is_named(published):
    # torchvision's own InceptionV3 has a second classifier
    tensors = {**published, "AuxLogits.fc.weight": np.zeros((1000, 768), np.float32)}
    with pytest.raises(UserError, match="'AuxLogits.fc.weight'"):
        load_inception(tensors)


def test_another_number_of_classes_is_refused(published):
    tensors = {**published, "fc.weight": np.zeros((1000, 2048), np.float32)}
    with pytest.raises(UserError, match=r"fc.weight.*\(1000, 2048\).*\(1008, 2048\)"):
        load_inception(tensors)


def test_a_tensor_that_is_not_finite_is_named(published):
    bad = np.full((32,), np.nan, np.float32)
    with pytest.raises(UserError, match=r"Conv2d_1a_3x3.bn.weight.*not finite"):
        load_inception({**published, "Conv2d_1a_3x3.bn.weight": bad})
