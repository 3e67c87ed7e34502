"""`python -m dsv4_shard` is `dsv4-shard`."""

from dsv4_shard.cli import main

if __name__ == "__main__":
    main()
