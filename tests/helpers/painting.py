"""What the tests of `generate` share: painted images, the command's words, and its interruption."""

import numpy as np

SIDE = 32


def paint(indices, labels):
    images = np.zeros((len(indices), SIDE, SIDE, 3), np.uint8)
    images[..., 0] = (indices % 256)[:, None, None]
    images[..., 1] = (indices // 256)[:, None, None]
    images[..., 2] = labels[:, None, None]
    return images


def words(run, output, **options):
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return ["generate", "--workdir", str(run), "--output", str(output), "--quiet", *given]


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def interrupt(monkeypatch, after):
    """Ctrl-C when that many batches have been written."""
    from repae_jax.sampling.outputs import Npz

    write, calls = Npz.write, []

    def writing(self, start, images):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(start)
        write(self, start, images)

    monkeypatch.setattr(Npz, "write", writing)
