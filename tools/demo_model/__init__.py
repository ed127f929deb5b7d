"""Makes, converts and checks the demo model in `worker/demo`."""
