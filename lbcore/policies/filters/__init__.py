"""The filters, one part in each file."""
