"""What a user types: the verbs of the command line."""
