"""SGLang 0.5.23 on a CPU, in an environment of its own: `python -m conformance.sglang JOBS RESULTS`."""
