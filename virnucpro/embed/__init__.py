"""A planned shard on a device: token budget, steps of one shape, pooling, receipts."""
