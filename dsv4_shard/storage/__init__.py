"""Files and folders that appear complete or not at all: direct I/O, locks, staging, durable renames."""
