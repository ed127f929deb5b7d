"""Policies and rival routers before real processes with simulated engines, beside the simulator's figures."""
