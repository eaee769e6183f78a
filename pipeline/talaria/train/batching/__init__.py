"""Which conversation is trained when and on which rank, packed into micro-batches and prefetched."""
