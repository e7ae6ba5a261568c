"""Merging shard embeddings into one file, accounting for every record, and reporting."""
