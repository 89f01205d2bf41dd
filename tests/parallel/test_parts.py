"""Names of operations in HLO text, as JAX writes them, give the part of the step."""

import pytest

from repae_jax.aot.parts import part_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "jit(step)/jvp(AutoencoderKL.encode)/encoder/down_0/block_0/norm1/mul",
            "AutoencoderKL encoder/down_0",
        ),
        (
            "jit(step)/transpose(jvp(AutoencoderKL.decode))/decoder/up_1/"
            "jvp(AutoencoderKL.decode)/decoder/up_1/checkpoint/block_0/conv1/transpose",
            "AutoencoderKL decoder/up_1 (backward)",
        ),
        (
            "jit(step)/while/body/jvp(SiT)/SiT._encode/SiT._apply_blocks/blocks_0/attn/q/dot",
            "SiT blocks_0/attn",
        ),
        (
            "jit(step)/transpose(jvp(PatchDiscriminator))/norm_2/mul",
            "PatchDiscriminator norm_2 (backward)",
        ),
        ("jit(step)/jvp(LPIPS)/add", "LPIPS"),
        ("jit(step)/transpose(jvp())/mul", "losses"),
        ("jit(step)/cond/branch_1_fun/add", "update"),
        ("jit(step)/ViT/blocks_0/dot", "others"),
        ("jit(step)/while/body/closed_call/second/mul", "others"),
    ],
)  # fmt: skip
def test_the_part_of_an_operation(name, expected):
    assert part_of(f'calls=%fused, metadata={{op_name="{name}" source_line=3}}') == expected


def test_instructions_without_a_name_are_counted_as_such():
    assert part_of("calls=%fused") == "unnamed"
