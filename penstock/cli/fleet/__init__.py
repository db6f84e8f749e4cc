"""``penstock fleet``: devices and rollouts, over gRPC to a core."""
