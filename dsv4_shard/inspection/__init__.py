"""The document that `inspect` returns, for known and for unknown families."""
