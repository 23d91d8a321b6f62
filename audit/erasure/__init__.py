"""Erasing a user: asked for, done, and done again after a restore."""
