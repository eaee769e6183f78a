"""The ranks: process group, sharding, and sums of gradients."""
