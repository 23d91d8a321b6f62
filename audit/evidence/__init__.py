"""Evidence packs: what happened in a period, mapped to controls."""
