"""The data plane against its rivals: every system in front of equally fast simulated workers, on one machine."""
