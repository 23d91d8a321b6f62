"""The project and the decision plane."""
