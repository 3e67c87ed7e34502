"""Where a checkpoint's bytes come from: a folder, the Hugging Face Hub, an object store."""
