"""The scorers, one part in each file."""
