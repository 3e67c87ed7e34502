"""What each command prints: one module per result."""
