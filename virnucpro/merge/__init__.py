"""From the shards' embeddings and the records to the results, with every record accounted for."""
