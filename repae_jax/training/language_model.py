"""Training of a small causal language model on a run's own captions, to encode them."""

import itertools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from repae_jax.config.modules import build_text_encoder
from repae_jax.data.source import Source, check_captions
from repae_jax.data.sources import open_source
from repae_jax.data.tokens import FILE, Tokenize, grammar_tokenizer, train_tokenizer
from repae_jax.errors import BadImage, UserError
from repae_jax.interop.files import write_safetensors
from repae_jax.interop.text_encoder import WEIGHTS, export_text_encoder
from repae_jax.models.text_encoders.base import caption_mask, initial_variables
from repae_jax.models.text_encoders.causal_lm import CausalLM, whitening_of
from repae_jax.runs.captions import tokenized
from repae_jax.training.fit import fit
from repae_jax.utils.atomic_files import write_atomically

_BUCKET = 8  # tokens; the length of a training batch is a multiple of it
_HELDOUT = 1000  # held-out captions that measure the model
_WHITENED_FROM = 4000  # captions whose states are whitened
_VOCABULARY_FROM = 100_000  # captions that a tokenizer is trained on


def pretrain_text_encoder(config: ConfigDict, *, progress: bool = True) -> float:
    """Train `config.text_encoder` to predict the next token of the training split's captions.

    The folder that `config.text_encoder.weights` names gets model.safetensors under transformers'
    names, and tokenizer.json: the grammar's for described images, otherwise byte-level BPE trained
    on the captions.

    Returns:
      The perplexity per token of held-out captions.

    Raises:
      UserError: see `check_pretraining`, or the data have no captions.
      NotFinite: the training diverged.
    """
    check_pretraining(config)
    encoder, recipe = build_text_encoder(config), config.text_encoder.pretrain
    plain = encoder.clone(whitened=False)  # as it is trained
    train, heldout = (open_source(config.data, split) for split in ("train", "heldout"))
    check_captions(train)
    folder = pathlib.Path(config.text_encoder.weights)
    folder.mkdir(parents=True, exist_ok=True)
    train, heldout = (_Captions(it, config.data.on_bad_image == "skip") for it in (train, heldout))
    tokenizer = _tokenizer(config, train, encoder.vocabulary)
    with tempfile.TemporaryDirectory(prefix=".pretrain-", dir=folder) as aside:
        file = pathlib.Path(aside) / FILE
        tokenizer.save(str(file))
        tokenize = Tokenize(str(file), encoder.length, encoder.pad_id)
        tokenize.check(encoder.vocabulary, encoder.null_ids)
        params = _fit(plain, tokenize, train, recipe, config.seed, progress)
        perplexity = _perplexity(plain, params, _inputs(tokenize, heldout, range(_HELDOUT)))
        content = file.read_bytes()
        if encoder.whitened:
            params["whitening"] = _whitening(plain, params, tokenize, train)
    tensors = export_text_encoder({"params": params}, encoder)
    notes = {"perplexity": str(perplexity), "data": config.data.source, "seed": str(config.seed)}
    (folder / WEIGHTS).unlink(missing_ok=True)  # a kill leaves no weights beside another tokenizer
    write_atomically(folder / FILE, content)
    write_safetensors(str(folder / WEIGHTS), tensors, notes)
    return perplexity


def check_pretraining(config: ConfigDict) -> None:
    """Raise UserError unless the text encoder is a language model to train, and its place named."""
    section = config.text_encoder
    if not isinstance(build_text_encoder(config), CausalLM):
        raise UserError(
            f"config.text_encoder.family is {section.family!r}: next tokens train a 'causal_lm' "
            "alone"
        )
    if not section.pretrain.steps:
        raise UserError(
            "config.text_encoder.pretrain.steps is 0: this text encoder is not meant to be trained "
            "here; set it, or give its published weights"
        )
    if not section.weights or pathlib.Path(section.weights).suffix:
        raise UserError(
            f"config.text_encoder.weights is {section.weights!r}: name the folder to write"
        )


def _tokenizer(config, source, vocabulary):
    if config.data.source == "described":
        return grammar_tokenizer()
    count = min(len(source), _VOCABULARY_FROM)
    return train_tokenizer((source[index] for index in range(count)), vocabulary)


class _Captions:
    """The captions of a source; with `skip`, the next readable one in place of another."""

    def __init__(self, source: Source, skip: bool):
        self._source, self._skip = source, skip

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        for number in range(index, index + len(self)):
            try:
                return self._source.caption(number % len(self))
            except BadImage:
                if not self._skip or number == index + len(self) - 1:
                    raise


def _inputs(tokenize, captions, indices):
    """The inputs (see `tokenized`) of the captions with these indices."""
    return tokenized(tokenize, [captions[int(i) % len(captions)] for i in indices])


def _loss(encoder, params, inputs):
    """The mean cross-entropy of each token after those before it, in nats."""
    ids = inputs["caption_ids"]
    mask = caption_mask(ids, inputs["caption_length"])
    states = encoder.apply({"params": params}, ids, mask)[:, :-1]
    logits = states @ params["embedding"].T
    each = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    return jnp.sum(each * mask[:, 1:]) / jnp.maximum(mask[:, 1:].sum(), 1)


def _fit(encoder, tokenize, captions, recipe, seed, progress):
    """Train the encoder's parameters; returns them on the host."""

    def batches():
        for index in itertools.count():
            rng = np.random.default_rng((seed, index))
            chosen = rng.integers(len(captions), size=recipe.batch_size)
            inputs = _inputs(tokenize, captions, chosen)
            longest = -(-int(inputs["caption_length"].max()) // _BUCKET) * _BUCKET
            yield inputs | {"caption_ids": inputs["caption_ids"][:, :longest]}

    key = jax.random.key(seed)
    return fit(
        jax.jit(initial_variables, static_argnums=0)(encoder, key)["params"],
        lambda params, batch, _: _loss(encoder, params, batch),
        batches(),
        key,
        recipe,
        name="text encoder",
        progress=progress,
    )


def _whitening(encoder, params, tokenize, captions):
    """The parameters of the whitening of the states of captions."""
    inputs = _inputs(tokenize, captions, range(_WHITENED_FROM))
    mask = caption_mask(inputs["caption_ids"], inputs["caption_length"])
    states = jax.jit(encoder.apply)({"params": params}, inputs["caption_ids"], mask)
    return whitening_of(np.asarray(states)[np.asarray(mask)])


def _perplexity(encoder, params, captions):
    return float(jnp.exp(jax.jit(lambda p: _loss(encoder, p, captions))(params)))
