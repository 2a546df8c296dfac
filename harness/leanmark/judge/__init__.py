"""Judge: runs and baselines on disk."""
