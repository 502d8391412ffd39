"""The model: the ensemble, phases 1 and 2, the theory, the trigger."""
