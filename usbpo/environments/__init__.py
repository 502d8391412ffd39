"""Simulators, terminations, a simulator's state from an observation, the user's own modules."""
