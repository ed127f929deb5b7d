"""The scheduler process around the core."""

from lbcore.grpc_threads import poll_in_one_thread

poll_in_one_thread()
