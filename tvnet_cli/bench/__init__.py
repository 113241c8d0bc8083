"""``tvnet bench``: each claim of speed beside its peer, measured on the machine of the user."""
