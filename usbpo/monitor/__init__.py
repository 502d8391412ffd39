"""How far a run is, and what it will cost."""
