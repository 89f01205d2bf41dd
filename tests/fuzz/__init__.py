"""Changed files, by the thousand: whatever this project reads, it reads unchanged or refuses.

A *target* is a kind of file with the function that reads it; its files are made here, small and
every time the same. A *case* is one change of one of them, a list that says all: one key of JSON,
of a pickle or of metadata set to something else, left out or renamed; tensors of another name,
type or shape; bytes cut off, flipped, zeroed, appended; files missing; files made to do harm.
Every case must end in one of these:

    same       the values of the unchanged files
    refused    a `UserError` of one line (on the command line: status 2 and one line on stderr)
    other      other values, where nobody can know better:
               - bytes within the plain numbers of .safetensors and PyTorch's files, whose formats
                 have no checksum; but not in files that this project wrote itself, which have one;
               - bytes of text, JSON, pictures and HDF5 (`target.FREE`);
               - a key that is there to be chosen, with another finite number, another truth
                 value, null or left out (`Target.follows`), or any name (`Target.names`);
               - lines that are gone;
               - values of parts that may be missing, and are (`Target.optional`);
               - another picture, or none, in a picture's place

and never in

    exception  anything but a UserError
    silent     values that are others, but for the cases above
    hang       more than 60 s
    memory     more than 2 GB, or an allocation that fails for want of them
    message    a UserError of several lines or of more than 2,000 characters
    died       the end of the process

The slow tests run each target for a moment; every other case is one that once failed
(`once_broken.jsonl`). Cases follow from the seed, how many there are from the time. More of them,
on all targets, on some, or one case once more, from the repository's root:

    REPAE_FUZZ_SECONDS=600 python -m pytest tests/fuzz
    export PYTHONPATH=tests:tests/helpers
    python -m fuzz --seconds 1200 --jobs 2 --commands 120 --report counts.md
    python -m fuzz diffusers --seconds 60 --seed 1
    python -m fuzz 'file of labels' '["labels.txt", "cut", 3]'

Not here: TensorFlow Datasets, which its own library reads; and configurations in Python, which are
programs.
"""
