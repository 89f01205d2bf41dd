import importlib.util
import math
import os
import pathlib
import sys
import types

import numpy as np
import pytest
import torch

from repae_jax.evaluation.alignment import alignments, cknna, cknna_or_nan, normalize_features

PLATONIC = os.environ.get("PLATONIC_ORIGINAL")


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def random_features(count=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 32)), rng.normal(size=(count, 20))


def structured_features(count=60, seed=0):
    """Two noisy views of the same clusters, the second one turned and stretched."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(6, 8))[rng.integers(6, size=count)]
    truth = truth + 0.3 * rng.normal(size=truth.shape)
    return truth + 0.1 * rng.normal(size=truth.shape), np.tanh(truth @ rng.normal(size=(8, 12)))


KINDS = {
    "random": lambda: random_features(),
    "random, unit": lambda: tuple(map(unit, random_features())),
    "structured": lambda: structured_features(),
    "structured, unit": lambda: tuple(map(unit, structured_features())),
    "scaled": lambda: tuple(50 * x for x in structured_features()),
}


def by_loops(first, second, k):
    """Pair by pair, with U-statistics over distinct indices for the HSIC."""
    n = len(first)

    def kernel(features):
        return [[float(a @ b) for b in features] for a in features]

    def neighbours(matrix):
        choices = [[j for j in range(n) if j != i] for i in range(n)]
        return [set(sorted(c, key=lambda j: -row[j])[:k])
                for row, c in zip(matrix, choices, strict=True)]  # fmt: skip

    def masked(matrix, near, other_near):
        return np.array([
            [matrix[i][j] if j in near[i] and j in other_near[i] else 0.0 for j in range(n)]
            for i in range(n)
        ])  # fmt: skip

    def hsic(a, b):
        np.fill_diagonal(a, 0)
        np.fill_diagonal(b, 0)
        pairs = sum(a[i, j] * b[j, i] for i in range(n) for j in range(n))
        paths = sum(a[i, j] * b[j, m] for i in range(n) for j in range(n) for m in range(n))
        apart = a.sum() * b.sum()
        return (pairs + apart / ((n - 1) * (n - 2)) - 2 * paths / (n - 2)) / (n * (n - 3))

    kernels = [kernel(first), kernel(second)]
    near = [neighbours(matrix) for matrix in kernels]

    def similarity(a, b):
        return hsic(masked(kernels[a], near[a], near[b]), masked(kernels[b], near[b], near[a]))

    return similarity(0, 1) / (math.sqrt(similarity(0, 0) * similarity(1, 1)) + 1e-6)


@pytest.mark.parametrize("k", [4, 10, None])
@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_definition_pair_by_pair(kind, k):
    first, second = (x[:36] for x in KINDS[kind]())
    expected = by_loops(first, second, 35 if k is None else k)
    assert cknna(first, second, k) == pytest.approx(expected, rel=1e-9)


def test_matches_dense_matrices_in_torch_over_several_blocks():
    # More rows than one block of the similarity matrix holds.
    first, second = (torch.tensor(x) for x in structured_features(1100))
    n, k = 1100, 10
    kernels = [x @ x.T for x in (first, second)]
    masks = []
    for kernel in kernels:
        off = kernel - torch.diag(torch.full((n,), torch.inf))
        masks.append(off >= off.sort(dim=1, descending=True).values[:, k - 1 : k])

    def hsic(a, b, mask):
        a, b = a * mask, b * mask
        ones = torch.ones(n, dtype=a.dtype)
        value = torch.trace(a @ b) + (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
        return (value - 2 * (ones @ a @ b @ ones) / (n - 2)) / (n * (n - 3))

    own = hsic(kernels[0], kernels[0], masks[0]) * hsic(kernels[1], kernels[1], masks[1])
    expected = hsic(*kernels, masks[0] & masks[1]) / (own.sqrt() + 1e-6)
    assert cknna(first.numpy(), second.numpy()) == pytest.approx(expected.item(), rel=1e-9)


@pytest.fixture(scope="module")
def original():
    if not PLATONIC:
        pytest.skip("set PLATONIC_ORIGINAL to a checkout of minyoungg/platonic-rep")
    path = pathlib.Path(PLATONIC) / "metrics.py"
    spec = importlib.util.spec_from_file_location("platonic_metrics", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # Imported there for another measure's edit distance.
        for name in ("torchaudio", "torchaudio.functional"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["torchaudio"].functional = sys.modules["torchaudio.functional"]
        spec.loader.exec_module(module)
    return module.AlignmentMetrics.cknna


@pytest.mark.parametrize("kind", KINDS)
def test_matches_platonic_rep(original, kind):
    first, second = KINDS[kind]()
    expected = original(torch.tensor(first), torch.tensor(second), topk=10, unbiased=True)
    value = cknna(first, second)
    print(f"\n{kind}: {expected} {value - expected:.1e}")
    assert value == pytest.approx(expected, abs=1e-6)


def test_same_neighbourhoods_are_one_apart_from_the_offset():
    first, _ = structured_features()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))
    assert cknna(first, 1000 * first @ rotation) == pytest.approx(1.0, abs=1e-6)
    assert abs(cknna(*random_features(400))) < 0.1


def test_equally_similar_images_are_taken_in_order():
    corners = np.tile(np.eye(4), (3, 1))  # three copies of each, all else is orthogonal
    assert cknna(corners, corners, 2) == pytest.approx(1.0, abs=1e-4)


def test_what_has_no_neighbourhoods_is_refused():
    first, second = random_features()
    broken = second.copy()
    broken[7] = math.nan
    for arguments, message in [
        ((first, second[:50]), "60 and 50 features"),
        ((first, broken), "second features: row 7"),
        ((first, second, 1), "topk = 1"),
        ((first, second, 60), "topk = 60"),
        ((first[:3], second[:3], 2), "3 images"),
        ((first, np.ones_like(second)), "second features are all equal"),
    ]:
        with pytest.raises(ValueError, match=message):
            cknna(*arguments)


def test_what_is_not_defined_is_left_out_with_a_warning(capsys):
    tokens, teacher = structured_features()
    teachers = {
        "good": teacher,
        "collapsed": np.repeat(teacher[:1], len(teacher), 0),
        "broken": np.where(np.arange(20) == 3, np.nan, teacher[:, :1]),
    }
    found = alignments(tokens, teachers)
    assert found == {"good": cknna(normalize_features(tokens), normalize_features(teacher))}
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(" is left out")[0] for line in warnings] == [
        "warning: CKNNA with the teacher collapsed",
        "warning: CKNNA with the teacher broken",
    ]
    for bad in (np.zeros_like(tokens), np.full_like(tokens, np.inf)):
        assert alignments(bad, {"good": teacher}) == {}
        assert "the teacher good is left out" in capsys.readouterr().err
    assert math.isnan(cknna_or_nan(np.ones_like(tokens), teacher))
