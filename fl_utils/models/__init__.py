"""Model builders (floor 1)."""
