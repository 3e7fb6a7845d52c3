"""Inputs of `benchmarks.fuzz`: what each parser reads, and how it is changed."""
