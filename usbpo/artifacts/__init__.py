"""Files and their headers: what a stage hands on, and where it lies."""
