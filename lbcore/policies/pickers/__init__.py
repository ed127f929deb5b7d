"""The pickers, one part in each file."""
