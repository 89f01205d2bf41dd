import contextlib
import dataclasses
import json

import numpy as np
import pytest

from repae_jax.data.pipeline import eval_batches, train_batches
from repae_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Numbered:
    """Images that say which they are, also when they are mirrored."""

    size: int
    name: str = "numbered"
    num_classes: int = 5

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        image = np.zeros((4, 6, 3), np.uint8)
        image[...] = index
        image[:, 0] = 255  # the left edge
        return {"image": image, "label": np.int32(index % self.num_classes)}


def number(batch):
    return batch["image"][:, 0, 3, 0].astype(int)  # neither edge


def mirrored(batch):
    left, right = batch["image"][:, 0, 0, 0] == 255, batch["image"][:, 0, -1, 0] == 255
    assert (left != right).all()
    return right


def share_of(batch_size, index, processes):
    """The rows of one of several processes that divide a batch side by side."""
    share = batch_size // processes
    return tuple(range(index * share, (index + 1) * share))


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def stream(count, *, size=23, batch_size=6, seed=3, **options):
    iterator = train_batches(Numbered(size), batch_size=batch_size, seed=seed, **options)
    batches = take(iterator, count)
    iterator.close()
    return batches


def numbers(*args, **options):
    return np.concatenate([number(batch) for batch in stream(*args, **options)])


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


def test_batches_are_uint8_images_and_int32_labels():
    for batch in stream(3):
        assert batch["image"].shape == (6, 4, 6, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].shape == (6,)
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["label"], number(batch) % 5)


@pytest.mark.parametrize(("size", "batch_size"), [(24, 6), (23, 6), (23, 23), (7, 1)])
def test_every_epoch_has_each_image_once_in_an_order_of_its_own(size, batch_size):
    epochs = 3
    count = -(-epochs * size // batch_size)
    seen = numbers(count, size=size, batch_size=batch_size)[: epochs * size]
    orders = seen.reshape(epochs, size)
    for order in orders:
        assert sorted(order) == list(range(size))
    assert len({tuple(order) for order in orders}) == epochs
    assert tuple(range(size)) not in {tuple(order) for order in orders}


def test_the_order_depends_on_the_seed_only():
    np.testing.assert_array_equal(numbers(8, seed=3), numbers(8, seed=3))
    first_epochs = {tuple(numbers(4, size=24, seed=seed)) for seed in range(5)}
    assert len(first_epochs) == 5
    # a batch size only cuts the stream differently
    np.testing.assert_array_equal(numbers(8, batch_size=6), numbers(16, batch_size=3))


def test_one_seeds_epochs_are_not_the_next_seeds():
    orders = {tuple(numbers(24, size=24, seed=seed)[24 * epoch :][:24])
              for seed in range(3) for epoch in range(3)}  # fmt: skip
    assert len(orders) == 9


def cases(count):
    """Sizes and batch sizes, each with a number of processes that divides the batch."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        processes = int(rng.integers(1, 4))
        batch_size = processes * int(rng.integers(1, 5))
        size = int(rng.integers(batch_size, 40))
        yield size, batch_size, processes, int(rng.integers(1000))


def sequence(iterators, count):
    """(image, flipped) of a stream in order; each process has its part of every batch."""
    found = []
    for _ in range(count):
        batches = [next(iterator) for iterator in iterators]
        assert len({len(batch["label"]) for batch in batches}) == 1
        for batch in batches:
            np.testing.assert_array_equal(batch["label"], number(batch) % 5)
            found += zip(number(batch), mirrored(batch), strict=True)
    return found


@pytest.mark.parametrize(("size", "batch_size", "processes", "seed"), cases(12))
def test_the_stream_is_one_whoever_reads_it_and_wherever_it_is_taken_up(
    size, batch_size, processes, seed
):
    def start(processes, state=None):
        iterators = [
            train_batches(
                Numbered(size),
                batch_size=batch_size,
                seed=seed,
                flip=True,
                rows=share_of(batch_size, index, processes),
            )
            for index in range(processes)
        ]
        for iterator in iterators:
            opened.callback(iterator.close)
            if state is not None:
                iterator.set_state(json.loads(json.dumps(state)))
        return iterators

    with contextlib.ExitStack() as opened:
        count = -(-3 * size // batch_size)
        alone = start(1)
        expected = sequence(alone[:], count)
        shares = start(processes)
        first = int(np.random.default_rng(seed).integers(0, count))
        assert sequence(shares, first) == expected[: first * batch_size]
        (state,) = {json.dumps(share.get_state()) for share in shares}  # the same everywhere
        # the stream taken up at any batch, by as many processes or by one, is the same
        for again in (shares, start(processes, json.loads(state)), start(1, json.loads(state))):
            assert sequence(again, count - first) == expected[first * batch_size :]

    # of every epoch each image once; orders and flips are its own
    epochs = [expected[epoch * size : (epoch + 1) * size] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(image for image, _ in epoch) == list(range(size))
    if size > 10:  # so that chance does not make two alike
        assert len({tuple(image for image, _ in epoch) for epoch in epochs}) == 3
        assert len({tuple(flip for _, flip in sorted(epoch)) for epoch in epochs}) == 3
        with contextlib.ExitStack() as opened:
            seed += 1
            other = sequence(start(1), count)
        assert [image for image, _ in other] != [image for image, _ in expected]


@pytest.mark.parametrize("consumed", [0, 1, 3, 4, 9])
def test_a_restored_state_continues_exactly(consumed):
    source = Numbered(23)  # the 4th batch crosses the end of an epoch
    first = train_batches(source, batch_size=6, seed=3, flip=True)
    take(first, consumed)
    state = json.loads(json.dumps(first.get_state()))
    expected = take(first, 6)

    fresh = train_batches(source, batch_size=6, seed=3, flip=True)
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert_same(take(fresh, 6), expected)

    fresh.set_state(state)  # and back again, with batches read ahead
    assert_same(take(fresh, 6), expected)
    first.close()
    fresh.close()


def test_the_state_is_the_same_on_every_process_and_outlives_their_number():
    state = {}
    for index in range(3):
        share = train_batches(Numbered(23), batch_size=6, seed=3, rows=share_of(6, index, 3))
        take(share, 5)
        state[index] = share.get_state()
        share.close()
    assert state[0] == state[1] == state[2]
    alone = train_batches(Numbered(23), batch_size=6, seed=3)
    alone.set_state(state[0])
    assert_same(take(alone, 4), stream(9)[5:])
    alone.close()


def test_worker_processes_change_nothing():
    threads = train_batches(Numbered(23), batch_size=6, seed=3, flip=True)
    expected = take(threads, 9)
    processes = train_batches(Numbered(23), batch_size=6, seed=3, flip=True, workers=2)
    try:
        assert_same(take(processes, 4), expected[:4])
        state = json.loads(json.dumps(processes.get_state()))
        assert_same(take(processes, 1), expected[4:5])
        # what worker processes saved, threads continue, and the other way round
        threads.set_state(state)
        assert_same(take(threads, 5), expected[4:])
        processes.set_state(state)
        assert_same(take(processes, 5), expected[4:])
    finally:
        processes.close()
        threads.close()


def test_orbax_saves_and_restores_the_state(tmp_path):
    import grain.checkpoint
    import orbax.checkpoint as ocp

    iterator = train_batches(Numbered(23), batch_size=6, seed=3)
    take(iterator, 5)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        expected = take(iterator, 4)
        fresh = train_batches(Numbered(23), batch_size=6, seed=3)
        manager.restore(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    assert_same(take(fresh, 4), expected)


def test_flips_mirror_half_of_the_images_anew_in_every_epoch():
    size, epochs = 200, 4
    batches = stream(epochs * size // 20, size=size, batch_size=20, flip=True)
    order = np.concatenate([number(batch) for batch in batches]).reshape(epochs, size)
    flips = np.concatenate([mirrored(batch) for batch in batches]).reshape(epochs, size)
    by_image = np.stack([flips[e][np.argsort(order[e])] for e in range(epochs)])
    assert 0.4 < by_image.mean() < 0.6  # 800 coins: five standard deviations
    assert len({tuple(flip) for flip in by_image}) == epochs
    again = stream(epochs * size // 20, size=size, batch_size=20, flip=True)
    assert_same(batches, again)
    plain = stream(5, size=size, batch_size=20)
    assert not any(mirrored(batch).any() for batch in plain)
    # flipping leaves the order alone
    np.testing.assert_array_equal(
        np.concatenate([number(batch) for batch in plain]), order[0][:100]
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Latents(Numbered):
    """Latents that say which they are, those of the mirrored image by a minus sign."""

    def __getitem__(self, index):
        mean = np.full((2, 2, 3), index + 1, np.float32)
        return {
            "latent_mean": mean,
            "teacher_tokens": (mean[0],),
            "label": np.int32(index % self.num_classes),
            "mirrored": {"latent_mean": -mean, "teacher_tokens": (-mean[0],)},
        }


def test_flips_choose_between_the_latents_of_both_images_by_the_same_coin():
    latents = train_batches(Latents(23), batch_size=6, seed=3, flip=True)
    for images, batch in zip(stream(8, flip=True), take(latents, 8), strict=True):
        assert set(batch) == {"latent_mean", "teacher_tokens", "label"}
        expected = (number(images) + 1) * np.where(mirrored(images), -1, 1)
        np.testing.assert_array_equal(batch["latent_mean"][:, 0, 0, 0], expected)
        np.testing.assert_array_equal(batch["teacher_tokens"][0][:, 0, 0], expected)
        np.testing.assert_array_equal(batch["label"], images["label"])
    latents.close()


@pytest.mark.parametrize(("size", "batch_size"), [(23, 6), (24, 6), (3, 8), (5, 1)])
def test_evaluation_sees_all_images_once_in_order(size, batch_size):
    batches = list(eval_batches(Numbered(size), batch_size))
    np.testing.assert_array_equal(np.concatenate([number(b) for b in batches]), range(size))
    assert all(len(batch["label"]) == batch_size for batch in batches[:-1])
    assert len(batches) == -(-size // batch_size)
    assert batches[-1]["label"].dtype == np.int32
    assert batches[-1]["image"].dtype == np.uint8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch_size = 0"),
        ({"batch_size": 24}, r"numbered has 23 images.*24"),
        ({"seed": -1}, r"seed = -1"),
        ({"workers": -1}, r"workers = -1"),
    ],
)
def test_impossible_requests_are_named(options, message):
    with pytest.raises(UserError, match=message):
        train_batches(Numbered(23), **{"batch_size": 6, "seed": 3, **options})


def test_an_empty_evaluation_batch_is_named():
    with pytest.raises(UserError, match="batch_size = 0"):
        eval_batches(Numbered(23), 0)


def test_a_source_of_exactly_one_batch_is_enough():
    assert sorted(number(stream(1, size=6)[0])) == list(range(6))
