"""The scheduler process around the core."""
