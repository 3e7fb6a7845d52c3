"""Trained networks of any origin: loading them, running them, starting from them."""
