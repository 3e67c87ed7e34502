"""A checkpoint's headers as one checked object: reader, inventory by role, findings, fingerprint."""
