"""The PyTorch code of a pipeline's folder: `pipeline_code` copies it, and nothing imports it.

`layers` is written into the file of every transformer, so that each file stands alone.
"""
