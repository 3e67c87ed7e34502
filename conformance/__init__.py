"""Holds what `reshard` writes against what SGLang 0.5.23 and vLLM 0.33.0 themselves load, on a machine without a GPU.

`python -m conformance --help` lists the steps. Each engine runs for real in an environment of its own: argument
resolution, choice of method, constructors, weight loaders. What has no CPU counterpart is faked: process groups, CUDA's
answers about the device, and native kernels, none of which runs while weights are loaded.
"""
