"""What policies do to a fleet, in virtual time: the pool, the queue and the policies of production before simulated
engines, under traffic from traces or generators."""
