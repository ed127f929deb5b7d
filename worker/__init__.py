"""The worker process: hosts one engine behind GenerationService and keeps a scheduler informed of its load."""

from lbcore.grpc_threads import poll_in_one_thread

poll_in_one_thread()
