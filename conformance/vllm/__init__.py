"""vLLM 0.33.0 on a CPU, in an environment of its own: `python -m conformance.vllm JOBS RESULTS`."""
