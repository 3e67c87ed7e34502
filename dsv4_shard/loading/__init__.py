"""What the plugins of both engines share: checks before a byte is copied, and filling parameters at hardware speed."""
