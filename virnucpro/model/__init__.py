"""ESM-2: weights from every published form into one, and the packed network that runs them."""
