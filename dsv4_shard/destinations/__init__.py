"""Where a job's files go: a folder, an object store, the nodes of a Ray cluster."""
