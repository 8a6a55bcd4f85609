"""A site file, its plan, and the targets it is rendered for."""
