"""Configuration to run record (floor 3)."""
