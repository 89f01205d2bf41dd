"""Captions in the stream of batches: the choice of one of several, for any readers, resumed."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from captioned import TEXTS, caption_config, write_captioned

from repae_jax.data.caption_states import CaptionStates, PadStates
from repae_jax.data.pipeline import eval_batches, train_batches
from repae_jax.data.sources import open_source

MANY = [[f"{image} {number}" for number in range(1 + image % 5)] for image in range(23)]


class Captioned:
    """Images that say which they are, with one to five captions, and the states of each."""

    name, num_classes = "captioned", 1

    def __init__(self, states=False):
        self.states = states

    def __len__(self):
        return len(MANY)

    def __getitem__(self, index):
        texts = MANY[index]
        element = {"image": np.full((2, 2, 3), index, np.uint8), "label": np.int32(0)}
        element["caption"] = texts[0] if len(texts) == 1 else tuple(texts)
        if self.states:
            element["caption_states"] = tuple(
                CaptionStates(np.full((2, 3), 10 * index + number, np.float16), 2)
                for number in range(len(texts))
            )
        return element


def numbers(caption):
    """A tokenizer whose ids are the image and the number of its caption."""
    return {"ids": np.array(caption.split(), np.int32)}


def batches(batch_size=6, seed=3, rows=None, states=False, **options):
    read = {"pad_states": PadStates(4)} if states else {"tokenize": numbers}
    return train_batches(
        Captioned(states), batch_size=batch_size, seed=seed, rows=rows, **read, **options
    )


def taken(iterators, count):
    """(image, caption) of the next `count` batches, whose rows are divided over the iterators."""
    found = []
    for _ in range(count):
        for batch in [next(iterator) for iterator in iterators]:
            images = batch["image"][:, 0, 0, 0]
            assert set(batch) == {"image", "label", "ids"}
            np.testing.assert_array_equal(batch["ids"][:, 0], images)
            found += [(int(image), int(number)) for image, number in batch["ids"]]
    return found


def halves():
    return [batches(rows=(0, 1, 2)), batches(rows=(3, 4, 5))]


def close(*iterators):
    for iterator in iterators:
        iterator.close()


def test_the_captions_are_one_stream_whoever_reads_it_and_wherever_it_is_taken_up():
    alone, count = batches(), 12
    expected = taken([alone], count)
    pair = halves()
    assert taken(pair, count) == expected
    close(alone, *pair)
    for start in range(count):
        fresh = [batches(), *halves()]
        for iterator in fresh:
            iterator.set_state(json.loads(json.dumps({"global_next_index": 6 * start})))
        assert taken(fresh[:1], 2) == (expected + taken_after(count))[6 * start : 6 * start + 12]
        assert taken(fresh[1:], 1) == expected[6 * start : 6 * start + 6]
        close(*fresh)


def taken_after(count):
    iterator = batches()
    iterator.set_state({"global_next_index": 6 * count})
    found = taken([iterator], 1)
    iterator.close()
    return found


def test_one_of_several_captions_is_chosen_anew_in_every_epoch():
    epochs = 40
    iterator = batches(batch_size=len(MANY))
    chosen = np.zeros((epochs, len(MANY)), int)
    for epoch in range(epochs):
        for image, number in taken([iterator], 1):
            chosen[epoch, image] = number
    iterator.close()
    for image, texts in enumerate(MANY):
        counts = np.bincount(chosen[:, image], minlength=len(texts))
        assert len(counts) == len(texts)
        assert counts.min() > 0  # (4/5)^40 is 1e-4; the seed is fixed
    assert len({tuple(epoch) for epoch in chosen}) == epochs
    other = batches(batch_size=len(MANY), seed=4)
    assert dict(taken([other], 1)) != dict(enumerate(chosen[0]))
    other.close()


def test_the_order_of_the_images_is_that_without_captions():
    plain = train_batches(Captioned(), batch_size=6, seed=3)
    captioned = batches()
    for _ in range(9):
        images = next(plain)
        assert set(images) == {"image", "label"}
        np.testing.assert_array_equal(next(captioned)["image"], images["image"])
    close(plain, captioned)


def test_kept_states_are_those_of_the_caption_that_is_chosen():
    of_ids, of_states = batches(), batches(states=True)
    expected = taken([of_ids], 9)
    for number in range(9):
        batch = next(of_states)
        assert set(batch) == {"image", "label", "tokens", "mask"}
        assert (batch["tokens"].dtype, batch["mask"].dtype) == (np.float32, bool)
        values = [10 * image + caption for image, caption in expected[6 * number :][:6]]
        states = np.broadcast_to(np.reshape(values, (6, 1, 1)), (6, 2, 3))
        np.testing.assert_array_equal(batch["tokens"][:, :2], states)
        assert not batch["tokens"][:, 2:].any()
        np.testing.assert_array_equal(batch["mask"], [[True, True, False, False]] * 6)
    close(of_ids, of_states)


def test_evaluation_takes_the_first_caption(tmp_path):
    source = open_source(caption_config("captions", write_captioned(tmp_path)), "train")
    lengths = lambda text: {"size": np.int32(len(text))}  # noqa: E731
    (batch,) = eval_batches(source, 8, tokenize=lengths)
    firsts = [text if isinstance(text, str) else text[0] for text in TEXTS]
    assert batch["size"].tolist() == [len(text) for text in firsts]
    (plain,) = eval_batches(source, 8)
    assert set(plain) == {"image", "label"}


KILLED = """
import json, os, pathlib, signal, sys
from test_caption_stream import batches, taken
folder, die_at = pathlib.Path(sys.argv[1]), int(sys.argv[2])
iterator, state = batches(workers=1), folder / "state"
if state.exists():
    iterator.set_state(json.loads(state.read_text()))
while (start := iterator.get_state()["global_next_index"] // 6) < 9:
    found = taken([iterator], 1)
    if start == die_at:
        os.kill(os.getpid(), signal.SIGKILL)  # before the state of this batch is saved
    with (folder / "seen").open("a") as file:
        file.write(json.dumps(found) + "\\n")
    state.write_text(json.dumps(iterator.get_state()))
iterator.close()
"""


@pytest.mark.slow  # each process imports Grain, and a worker of it does
def test_killed_with_9_the_captions_continue(tmp_path):
    (tmp_path / "killed.py").write_text(
        "if __name__ == '__main__':\n    " + KILLED.strip().replace("\n", "\n    ") + "\n"
    )
    folders = [os.path.dirname(__file__), os.path.join(os.path.dirname(__file__), "../helpers")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, *sys.path])}
    ends = []
    for die_at in (2, 5, -1):
        command = [sys.executable, tmp_path / "killed.py", tmp_path, str(die_at)]
        ends.append(subprocess.run(command, env=environment, check=False).returncode)
    assert ends == [-signal.SIGKILL, -signal.SIGKILL, 0]
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    alone = batches()
    assert [tuple(pair) for batch in seen for pair in batch] == taken([alone], 9)
    alone.close()
