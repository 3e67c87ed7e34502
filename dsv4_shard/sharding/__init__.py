"""Plan → rank files: recipe, copy, journal, manifest, joining of shares."""
