"""System checks: what is dangerous in production, with numbers."""
