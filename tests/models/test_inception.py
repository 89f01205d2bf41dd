import jax
import pytest
import torch_inception
from parity import assert_close, state_of

from repae_jax.interop.inception import load_inception
from repae_jax.models.inception import InceptionV3, preprocess

BLOCKS = [
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d"),
    *("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c"),
]


@pytest.fixture(scope="module")
def outputs():
    """(ours, theirs): {block or feature: value} of the same two images."""
    network = torch_inception.random_inception()
    images = torch_inception.random_images(2, 48, 64, seed=0)
    variables = load_inception(state_of(network))

    @jax.jit
    def ours(variables, images):
        return InceptionV3().apply(
            variables,
            preprocess(images),
            capture_intermediates=lambda module, _: len(module.path) == 1,
            mutable=["intermediates"],
        )

    features, captured = ours(variables, images)
    blocks = {name: kept["__call__"][0] for name, kept in captured["intermediates"].items()}
    return {**blocks, **features}, torch_inception.torch_blocks(network, images)


@pytest.mark.parametrize("block", [*BLOCKS, "pool", "logits"])
def test_equals_torch(outputs, block):
    ours, theirs = outputs
    assert theirs[block].std() > 0.01
    assert_close(ours[block], theirs[block], block)


def test_every_block_is_compared(outputs):
    ours, theirs = outputs
    assert set(ours) - {"fc", "spatial", *theirs} == set()
    assert set(theirs) == {*BLOCKS, "pool", "logits", "branch1x1"}


def test_spatial_is_the_beginning_of_the_first_branch(outputs):
    ours, theirs = outputs
    expected = theirs["branch1x1"][..., :7].reshape(2, 17 * 17 * 7)
    assert ours["spatial"].shape == (2, 2023)
    assert_close(ours["spatial"], expected, "spatial")
