"""The worker process: hosts one engine behind GenerationService and keeps a scheduler informed of its load."""
