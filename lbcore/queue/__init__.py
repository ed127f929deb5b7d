"""Requests that wait in the scheduler until a worker has room: in which order, within which bounds, how long."""
