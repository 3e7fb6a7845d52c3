"""Floating-point operations of the network's products, counted by its formulas."""

import dataclasses

from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import Architecture, Head


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """Of one pass forward over a crop; a product of (m, k) and (k, n) has 2 m k n."""

    frontend: float
    first_convolution: float  # the part of `frontend` whose input needs no gradient
    projections: float  # from the front-end to the transformer, with positions
    layers: float  # all blocks of the transformer
    attention: float  # the part of `layers` that weighs frames by each other
    heads: float

    @property
    def forward(self) -> float:
        """All of it."""
        return self.frontend + self.projections + self.layers + self.heads

    @property
    def step(self) -> float:
        """Of an update without rematerialisation: each product has two gradients."""
        return 3.0 * self.forward - self.first_convolution


def of_crop(architecture: Architecture, head: Head, frames: int) -> ModelFlops:
    """Of one crop of 50 Hz `frames`, in pre-training."""
    dim, length, channels, frontend, first = architecture.dim, num_samples(frames), 1, 0.0, 0.0
    layers = zip(
        architecture.conv_channels,
        architecture.conv_kernels,
        architecture.conv_strides,
        strict=True,
    )
    for width, kernel, stride in layers:
        length = (length - kernel) // stride + 1
        own = 2.0 * length * width * channels * kernel
        first = first or own
        frontend, channels = frontend + own, width
    positions = dim // architecture.positional_groups * architecture.positional_kernel
    block = 4 * dim * dim + 2 * dim * architecture.ffn_dim + 2 * frames * dim
    weighing = 4.0 * frames * frames * dim * architecture.num_layers
    classes = sum(head.codebook_sizes)
    return ModelFlops(
        frontend=frontend,
        first_convolution=first,
        projections=2.0 * frames * dim * (channels + positions),
        layers=2.0 * frames * block * architecture.num_layers,
        attention=weighing,
        heads=2.0 * frames * head.projection_dim * (len(head.codebook_sizes) * dim + classes),
    )
