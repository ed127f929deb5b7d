"""Hugging Face transformers with its own continuous batching: for models that the faster engines do not take."""
