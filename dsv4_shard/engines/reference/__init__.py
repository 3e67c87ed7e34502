"""DeepSeek's own converter and model, for each model generation."""
