"""The commands, one a module: read the options, call a verb, show its result."""
