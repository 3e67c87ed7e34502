"""Input and output of the command line: options, help, completion, progress, tables, JSON documents."""
