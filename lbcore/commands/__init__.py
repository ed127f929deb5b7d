"""What `lbctl` asks of a running scheduler, one command in each file."""
