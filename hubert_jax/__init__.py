"""hubert_jax: self-supervised speech representation learning (HuBERT, Hsu et al. 2021) in JAX."""

__version__ = "0.1.0"
