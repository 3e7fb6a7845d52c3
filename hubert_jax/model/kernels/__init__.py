"""Computations in a plain form and in forms that one platform runs faster; see `choice`."""
