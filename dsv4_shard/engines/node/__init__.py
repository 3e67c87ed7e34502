"""Node folders: the experts of one node each, for the engines' stock loaders."""
