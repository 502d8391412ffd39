"""What is to be run: configuration, plan, schedule, sizes."""
