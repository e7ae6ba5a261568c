"""Plans: which items of a shard run together in which batch, made before a GPU is taken."""
