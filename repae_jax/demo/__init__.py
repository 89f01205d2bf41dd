"""A page in the browser that samples from a run and reconstructs pictures."""
