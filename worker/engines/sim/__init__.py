"""The simulated engine: a real one in everything but the words."""
