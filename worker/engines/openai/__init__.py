"""The engine that is somebody else's server: any HTTP server that speaks OpenAI's API becomes a worker, unmodified."""
