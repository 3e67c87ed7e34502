"""What the plugins of both engines do before a byte is copied: compare facts, files and shapes."""
