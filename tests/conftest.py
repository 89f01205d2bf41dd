import os

# The tests' tensors are small: torch's threads would wait for each other longer than they work
# (a small VAE, forward and backward, on two busy cores: 6 s with two threads, 0.07 s with one).
os.environ.setdefault("OMP_NUM_THREADS", "1")
