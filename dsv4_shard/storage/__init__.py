"""Files and folders that appear whole or not at all: direct I/O, locks, staging, durable renames."""
