import kinks
import pytest
import torch
from torch import nn


def distances_of(x):
    """A sum of 1,000 values, whose rounding float32 shows, and a ReLU."""

    def distances(dtype):
        layers = nn.Sequential(nn.Linear(1000, 1, bias=False), nn.ReLU()).to(dtype)
        with torch.no_grad(), kinks.recorded(layers) as found:
            layers[0].weight.fill_(0.1)
            layers(x.to(dtype))
        return found

    return distances


def inputs(*sums):
    """Rows (n, 1000) of random numbers with these sums, to float32."""
    noise = torch.randn(len(sums), 1000, generator=torch.Generator().manual_seed(0)).double()
    rows = noise - noise.mean(1, keepdim=True) + torch.tensor(sums)[:, None] / 1000
    return rows.float()


FAR = inputs(30.0, -40.0)
ON_THE_KINK = inputs(30.0, 1e-7)


def test_an_input_within_rounding_of_a_kink_has_no_margin():
    assert kinks.margin(distances_of(FAR)) > 1000
    assert kinks.margin(distances_of(ON_THE_KINK)) < kinks.SAFETY


def test_the_first_safe_input_is_taken():
    assert kinks.first_safe([ON_THE_KINK, FAR, -FAR], distances_of) is FAR
    with pytest.raises(AssertionError, match="no safe input among 1: the best margin is"):
        kinks.first_safe([ON_THE_KINK], distances_of)


@pytest.mark.parametrize(
    ("window", "gap"), [((3.0, 1.0, 2.5, 0.0), 0.5), ((0.0, 0.0, 0.0, 0.0), torch.inf)]
)
def test_a_poolings_distance_is_the_gap_of_the_two_largest(window, gap):
    pool = nn.MaxPool2d(2)
    with kinks.recorded(pool) as found:
        pool(torch.tensor(window).reshape(1, 1, 2, 2))
    assert found[0].item() == gap


def test_a_unit_that_fires_in_one_type_only_has_no_margin():
    infinite = {torch.float64: torch.inf, torch.float32: 1.0}
    assert kinks.margin(lambda dtype: [torch.tensor([infinite[dtype], 1.0], dtype=dtype)]) == 0
