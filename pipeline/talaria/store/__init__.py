"""Content-addressed stage outputs on disk: manifests, pruning, and the copy on object storage."""
