"""What the command line reads and prints: options, help, completion, progress, tables, JSON documents."""
