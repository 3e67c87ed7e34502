"""Every name and number that an option accepts: engines, runners, versions, GPUs, ranks. Imports nothing heavy."""
