"""Muniment in the frameworks that backends are made with; each module needs its own, and imports nothing of the others."""
