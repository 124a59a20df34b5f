"""Every check and every variant on one GPU in minutes: `python -m scgpt_ray.benchmark.gpu --output DIR`.

A stage is a process with a time limit, so one that fails, hangs or is killed costs its own figures only. It needs torch
for CUDA (which brings triton), numpy, pyarrow, numba, h5py and pytest.

`--device cpu` runs the same stages in small, which is what the tests do.
"""
