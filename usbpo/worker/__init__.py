"""The warm process that runs stages, and the light client that hands it a stage."""
