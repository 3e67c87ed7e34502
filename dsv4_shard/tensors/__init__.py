"""One stored tensor: its header entry, byte ranges, quantization blocks and exact casts. No files, no models."""
