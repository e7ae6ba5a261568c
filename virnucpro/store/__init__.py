"""The embedding store: vectors that were computed once, found again by sequence and request."""
