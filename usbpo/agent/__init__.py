"""The agent: soft actor-critic."""
