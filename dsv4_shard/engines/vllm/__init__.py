"""vLLM: rules, placements and files of each model generation."""
