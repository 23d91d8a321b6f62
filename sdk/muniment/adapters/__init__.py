"""Muniment in the frameworks that backends are made with. Each module needs its own, and none of the others; `http` is
what they have in common, and needs none."""
