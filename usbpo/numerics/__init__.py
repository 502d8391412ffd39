"""What model and agent share: the optimizer, devices, threads, seeds."""
