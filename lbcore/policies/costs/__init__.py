"""The costs, one part in each file."""
