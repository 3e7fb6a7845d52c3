"""Optimisation of a model over a device mesh; jobs call it, it imports no job."""
