"""Policies against workloads and incidents, in the simulator."""
