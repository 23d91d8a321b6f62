"""Exports: what one is, its runs, its files and what is beside them."""
