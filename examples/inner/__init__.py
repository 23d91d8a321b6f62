"""Inner: a memory service, guarded by Muniment. See README.md."""
