"""Parameters to and from other libraries' names; the only package that may import torch."""
