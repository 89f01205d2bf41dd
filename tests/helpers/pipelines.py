"""What diffusers' pipelines do between their own latents and a VAE's, run from their source.

The pipelines themselves need text encoders and more; the lines that count read the VAE's config.
"""

import ast
import pathlib
import types

import diffusers
import torch

_FOLDER = pathlib.Path(diffusers.__file__).parent / "pipelines"
_KEYS = {"scaling_factor", "shift_factor", "latents_mean", "latents_std", "latents_bn"}


def decoded_latents(
    pipeline: str, config: dict, latents: torch.Tensor, **parts: torch.nn.Module
) -> torch.Tensor:
    """What a pipeline hands to its VAE's decoder of its own denoised `latents`.

    Of the block that calls the decoder those statements run that concern the VAE's scale; then
    the decoder's argument is evaluated.

    Args:
      pipeline: its file under diffusers/pipelines, without ".py".
      config: of the VAE.
      latents: what the denoising ends with, (B, c, ...).
      parts: modules of the VAE that these statements read, by name.
    """
    tree = ast.parse((_FOLDER / f"{pipeline}.py").read_text())
    call = next(node for node in ast.walk(tree) if getattr(node, "name", "") == "__call__")
    block, number = _decoding_block(call)
    config = types.SimpleNamespace(**config)
    vae = types.SimpleNamespace(config=config, dtype=latents.dtype, **parts)
    names = {"self": types.SimpleNamespace(vae=vae), "torch": torch, "latents": latents}
    for statement in block[:number]:
        if _KEYS & _words(statement):
            exec(compile(ast.Module([statement], []), pipeline, "exec"), names)
    argument = _decoder_call(block[number]).args[0]
    return eval(compile(ast.Expression(argument), pipeline, "eval"), names)


def _decoding_block(function):
    """The innermost statements of which one calls the decoder, and that one's number."""
    return [
        (statements, number)
        for node in ast.walk(function)
        for statements in (getattr(node, "body", None), getattr(node, "orelse", None))
        if isinstance(statements, list)
        for number, statement in enumerate(statements)
        if _decoder_call(statement) is not None
    ][-1]


def _decoder_call(statement):
    calls = (node for node in ast.walk(statement) if isinstance(node, ast.Call))
    return next((call for call in calls if ast.unparse(call.func) == "self.vae.decode"), None)


def _words(statement):
    """The names and attributes in a statement, without what they begin or end with."""
    nodes = list(ast.walk(statement))
    words = [node.id for node in nodes if isinstance(node, ast.Name)]
    words += [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    return {key for key in _KEYS for word in words if key in word}
