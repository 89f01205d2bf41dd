"""The LightningDiT under the names of its authors' code (hustvl/LightningDiT)."""

import numpy as np

from repae_jax.interop.tables import LINEAR, Rule, layer, norm, patch_layout
from repae_jax.models.backbones.lightningdit import LightningDiT
from repae_jax.models.rotary import angles

# The tables of cosines and sines, which the grid and the width of a head determine.
ROTARY = {"feat_rope.freqs_cos": np.cos, "feat_rope.freqs_sin": np.sin}


def lightningdit_rules(patch_size: int) -> list[Rule]:
    """Rules for the parameters and the position table, in module order."""
    block = ("blocks.{i}", "params/blocks_{i}")
    return [
        Rule("pos_embed", "constants/position_table"),
        *layer("x_embedder.proj", "params/patch_embed", patch_layout(patch_size)),
        *layer("t_embedder.mlp.0", "params/time_embed/fc1", LINEAR),
        *layer("t_embedder.mlp.2", "params/time_embed/fc2", LINEAR),
        Rule("y_embedder.embedding_table.weight", "params/label_embed/embedding"),
        Rule(f"{block[0]}.norm1.weight", f"{block[1]}/norm1/scale"),
        *layer(f"{block[0]}.attn.qkv", f"{block[1]}/attn/qkv", LINEAR),
        *norm(f"{block[0]}.attn.q_norm", f"{block[1]}/attn/q_norm"),
        *norm(f"{block[0]}.attn.k_norm", f"{block[1]}/attn/k_norm"),
        *layer(f"{block[0]}.attn.proj", f"{block[1]}/attn/proj", LINEAR),
        Rule(f"{block[0]}.norm2.weight", f"{block[1]}/norm2/scale"),
        *layer(f"{block[0]}.mlp.w12", f"{block[1]}/mlp/w12", LINEAR),
        *layer(f"{block[0]}.mlp.w3", f"{block[1]}/mlp/w3", LINEAR),
        *layer(f"{block[0]}.mlp.fc1", f"{block[1]}/mlp/fc1", LINEAR),
        *layer(f"{block[0]}.mlp.fc2", f"{block[1]}/mlp/fc2", LINEAR),
        *layer(f"{block[0]}.adaLN_modulation.1", f"{block[1]}/modulation", LINEAR),
        Rule("final_layer.norm_final.weight", "params/final_layer/norm/scale"),
        *layer("final_layer.linear", "params/final_layer/linear", LINEAR),
        *layer("final_layer.adaLN_modulation.1", "params/final_layer/modulation", LINEAR),
    ]


def rotary_tables(model: LightningDiT) -> dict[str, np.ndarray]:
    """The tables (grid * grid, head width) that the original's state dict holds; {} without."""
    if not model.rotary:
        return {}
    turns = angles(model.grid, model.hidden_size // model.num_heads)
    return {name: f(turns).repeat(2, axis=1).astype(np.float32) for name, f in ROTARY.items()}
