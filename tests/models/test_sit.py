import functools

import jax
import numpy as np
import parity
import pytest
import torch
import torch_sit
from exported import load_sit
from sits import sit_of

from repae_jax.interop import tables
from repae_jax.interop.sit import sit_rules
from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.backbones.sit import SIT_CONFIGS
from repae_jax.models.layers import sincos_position_table

SMALL = dict(
    latent_channels=3,
    hidden_size=32,
    depth=2,
    num_heads=4,
    num_classes=5,
    encoder_depth=1,
    teacher_dims=(12, 20),
    projector_dim=24,
)
CASES = {
    "patch 1, qk_norm": dict(latent_size=4, patch_size=1, qk_norm=True),
    "patch 2": dict(latent_size=8, patch_size=2, qk_norm=False),
}
NULL = SMALL["num_classes"]
TIME = np.array([0.0, 0.37, 1.0], np.float32)
LABELS = np.array([4, NULL, 1])

needs_original = pytest.mark.skipif(not parity.ORIGINAL, reason=parity.SKIP_REASON)


def original_sit(config, **changes):
    """The original's SiT, called as ours is: (x, t, labels) -> velocity, tokens, projections."""
    module = parity.original_module("models/sit.py")
    # timm's attention took LayerNorm for granted when the original was written.
    module.Attention = functools.partial(module.Attention, norm_layer=torch.nn.LayerNorm)
    config = dict(config)
    config |= dict(
        input_size=config.pop("latent_size"),
        in_channels=config.pop("latent_channels"),
        z_dims=config.pop("teacher_dims"),
        decoder_hidden_size=config["hidden_size"],
    )
    return module.SiT(class_dropout_prob=0.1, **config, **changes)


def run_original(model, x, t, labels):
    """Its `forward` makes x itself: without normalisation, (1 - t) x + t x."""
    tokens = []
    model.bn = torch.nn.Identity()
    block = model.blocks[model.encoder_depth - 1]
    handle = block.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    teachers = [torch.ones(len(x), 1, width) for width in model.z_dims]
    options = dict(path_type="linear", prediction="v", align_only=False)
    out = model.eval()(x, labels, teachers, options, t.reshape(-1, 1, 1, 1), x)
    handle.remove()
    return out["model_output"], tokens[0], out["zs_tilde"]


REFERENCES = {
    "torch": (lambda config: torch_sit.SiT(**config), lambda model, *args: model(*args)),
    "original": (original_sit, run_original),
}


def with_weights_of(reference, config):
    model = sit_of(**config)
    variables = load_sit(parity.state_of(reference), model)
    return model, {name: variables[name] for name in ("params", "constants")}


def shrink_before_norms(reference):
    """So that the epsilons of the first norm and of those of queries and keys show."""
    reference.pos_embed.data *= 1e-3
    parity.shrink(reference.x_embedder, 1e-3)
    for parameter in reference.blocks[1].attn.qkv.parameters():
        parameter.data[: 2 * SMALL["hidden_size"]] *= 3e-3  # queries and keys


@functools.cache
def gradient_function(case):
    """One compilation per case: outputs, and the gradient of their weighted sum."""
    model = sit_of(**SMALL, **CASES[case])

    def weighted(params, x, constants, weights):
        out = model.apply({"params": params, "constants": constants}, x, TIME, {"label": LABELS})
        outputs = [out.prediction, out.tokens, *out.projections]
        return sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), outputs

    return parity.quick_jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("name", ["torch", pytest.param("original", marks=needs_original)])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal(case, name):
    config = SMALL | CASES[case]
    make, run = REFERENCES[name]
    reference = parity.randomise(make(config))
    reference.pos_embed.requires_grad = False
    shrink_before_norms(reference)
    _, variables = with_weights_of(reference, config)
    x = parity.normal(3, config["latent_size"], config["latent_size"], 3, seed=1)

    x_torch = parity.to_nchw(x).requires_grad_()
    velocity, tokens, projections = run(
        reference, x_torch, torch.tensor(TIME), torch.tensor(LABELS)
    )
    expected = [velocity.permute(0, 2, 3, 1), tokens, *projections]
    weights = [parity.normal(*e.shape, seed=i) for i, e in enumerate(expected)]
    sum((e * torch.tensor(w)).sum() for e, w in zip(expected, weights, strict=True)).backward()

    gradient = gradient_function(case)
    (by_params, by_x), outputs = gradient(variables["params"], x, variables["constants"], weights)
    names = ["velocity", "tokens", "projection 0", "projection 1"]
    for output, actual, value in zip(names, outputs, expected, strict=True):
        parity.assert_close(actual, value, output)
    parity.assert_close(by_x, parity.to_nhwc(x_torch.grad), "gradient by x")
    by_name = tables.to_theirs(
        sit_rules(config["patch_size"]), tables.flatten({"params": by_params})
    )
    parity.assert_tensors_close(
        by_name,
        parity.gradients_of(reference),
        # moves all logits of a row alike
        vanishing=lambda n: n.replace("k_norm", "q_norm") if n.endswith("k_norm.bias") else None,
    )


def test_project_equals_the_projections_of_the_full_pass():
    config = SMALL | CASES["patch 2"]
    model, variables = with_weights_of(parity.randomise(torch_sit.SiT(**config)), config)
    x = parity.normal(3, 8, 8, 3, seed=1)

    @parity.quick_jit
    def both(variables, x):
        full = model.apply(variables, x, TIME, {"label": LABELS}).projections
        return full, model.apply(variables, x, TIME, {"label": LABELS}, method="project")

    full, alone = both(variables, x)
    assert [p.shape for p in alone] == [(3, 16, 12), (3, 16, 20)]
    for a, b in zip(full, alone, strict=True):
        parity.assert_close(b, a, "projection", 1e-6)


def test_project_reads_nothing_behind_encoder_depth():
    config = SMALL | CASES["patch 2"]
    model, variables = with_weights_of(parity.randomise(torch_sit.SiT(**config)), config)
    behind = ("blocks_1", "final_layer")
    params = {name: p for name, p in variables["params"].items() if name not in behind}
    project = functools.partial(model.apply, method="project")
    x = np.zeros((3, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(project, {**variables, "params": params}, x, TIME, {"label": LABELS})
    assert [s.shape for s in shapes] == [(3, 16, 12), (3, 16, 20)]


@pytest.fixture(scope="module")
def fresh():
    """A SiT as it starts, wide enough for statistics, and its velocity."""
    config = SMALL | dict(hidden_size=64, depth=1, latent_size=8, patch_size=2, qk_norm=True)
    model = sit_of(**config)
    x = parity.normal(3, 8, 8, 3, seed=1)

    @parity.quick_jit
    def start(key, x):
        variables = model.init(key, x, TIME, {"label": LABELS})
        return variables, model.apply(variables, x, TIME, {"label": LABELS}).prediction

    return jax.device_get(start(jax.random.key(0, impl="rbg"), x))


def test_a_fresh_model_gives_exactly_zero(fresh):
    variables, velocity = fresh
    assert velocity.shape == (3, 8, 8, 3)
    assert not velocity.any()
    params = variables["params"]
    assert not any(leaf.any() for leaf in params["blocks_0"]["modulation"].values())
    assert not any(leaf.any() for leaf in jax.tree.leaves(params["final_layer"]))


def test_initialisation(fresh):
    params = fresh[0]["params"]
    block = params["blocks_0"]
    uniform = {"patch_embed": params["patch_embed"], **block["mlp"]}
    uniform |= {name: block["attn"][name] for name in ("qkv", "proj")}
    for name in ("q_norm", "k_norm"):
        assert (block["attn"][name]["scale"] == 1).all()
    for k in range(2):
        uniform |= {f"projector {k} {n}": layer for n, layer in params[f"projectors_{k}"].items()}
    for name, layer in uniform.items():
        # Xavier's; of the fused qkv as one matrix, of the patch embedding as a linear layer
        bound = np.sqrt(6 / sum(layer["kernel"].shape))
        assert 0.97 * bound < np.abs(layer["kernel"]).max() <= bound, name
        assert abs(layer["kernel"].std() * np.sqrt(3) / bound - 1) < 0.07, name
    normal = [params["time_embed"]["fc1"]["kernel"], params["time_embed"]["fc2"]["kernel"]]
    for kernel in [*normal, params["label_embed"]["embedding"]]:
        assert abs(kernel.std() / 0.02 - 1) < 0.15
    biases = [leaf for path, leaf in tables.flatten(params).items() if path.endswith("bias")]
    assert len(biases) == 1 + 2 + 7 + 2 * 3 + 2
    assert not any(bias.any() for bias in biases)


def test_position_table_equals_the_formula(fresh):
    grid, dim = 3, 12
    expected = np.zeros((grid * grid, dim))
    for row in range(grid):
        for column in range(grid):
            for k in range(dim // 4):
                frequency = 10000.0 ** (-4 * k / dim)
                features = expected[row * grid + column]
                features[k] = np.sin(column * frequency)
                features[3 + k] = np.cos(column * frequency)
                features[6 + k] = np.sin(row * frequency)
                features[9 + k] = np.cos(row * frequency)
    np.testing.assert_allclose(sincos_position_table(dim, grid), expected, atol=1e-7)
    table = fresh[0]["constants"]["position_table"]
    np.testing.assert_array_equal(table, sincos_position_table(64, 4)[None])


@needs_original
def test_position_table_equals_the_original():
    expected = parity.original_module("models/sit.py").get_2d_sincos_pos_embed(1152, 16)
    np.testing.assert_allclose(sincos_position_table(1152, 16), expected, atol=1e-6)


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), *blank_inputs(model))["params"]


@pytest.mark.parametrize("null_class", [False, True])
def test_the_label_table_has_a_null_row_only_if_asked_for(null_class):
    model = sit_of(**SMALL | CASES["patch 2"], null_class=null_class)
    rows = shapes_of(model)["label_embed"]["embedding"].shape[0]
    assert rows == SMALL["num_classes"] + null_class
    assert model.conditioner.null_label == (NULL if null_class else None)


FULL = dict(latent_size=32, latent_channels=4, num_classes=1000, teacher_dims=(768,))


def our_count(config):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(sit_of(**config))))


def torch_count(make):
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters() if p.requires_grad)


# in millions: table 1 of the DiT paper (arXiv 2212.09748), and of the SiT paper
@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_published_sizes(size, millions):
    config = FULL | SIT_CONFIGS[f"SiT-{size}/2"]
    count = our_count(config)
    assert count == torch_count(lambda: torch_sit.SiT(**config))
    head = torch_count(lambda: torch_sit.projector(config["hidden_size"], 2048, 768))
    assert round((count - head) / 1e6) == millions


@pytest.mark.parametrize("name", SIT_CONFIGS)
def test_patch_sizes_change_the_first_and_the_last_layer_only(name):
    size, patch = name.split("/")
    assert SIT_CONFIGS[name] == SIT_CONFIGS[f"{size}/2"] | dict(patch_size=int(patch))
    config = FULL | SIT_CONFIGS[name] | dict(depth=0, teacher_dims=())
    assert our_count(config) == torch_count(lambda: torch_sit.SiT(**config))


# There SiT-S keeps a final layer of another width, and cannot run.
@needs_original
@pytest.mark.parametrize("name", ["SiT-B/1", "SiT-B/8", "SiT-L/4", "SiT-XL/2"])
def test_sizes_equal_the_original(name):
    make = parity.original_module("models/sit.py").SiT_models[name]
    expected = torch_count(lambda: make(input_size=32, z_dims=[768], qk_norm=False))
    assert our_count(FULL | SIT_CONFIGS[name]) == expected
