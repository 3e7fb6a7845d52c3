"""Adam with decoupled weight decay, clipping and schedule against PyTorch's."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from hubert_jax.training import optimizer as optimizer_lib
from hubert_jax.training.optimizer import OptimizerConfig


@pytest.mark.parametrize("clip_norm", [0.0, 2.0])
def test_adam_is_torch_adamw(clip_norm):
    config = OptimizerConfig(
        peak_learning_rate=3e-3, weight_decay=0.1, clip_norm=clip_norm, warmup_fraction=0.3
    )
    steps, random = 20, np.random.default_rng(0)
    start = {name: random.normal(size=shape) for name, shape in (("a", (4, 3)), ("b", (5,)))}

    ours = {name: jnp.asarray(value, jnp.float32) for name, value in start.items()}
    transform = optimizer_lib.build(config, steps)
    state = transform.init(ours)

    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    adamw = torch.optim.AdamW(
        theirs.values(), lr=3e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1
    )
    linear = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda step: step / 6 if step <= 6 else (steps - step) / 14
    )
    for _ in range(steps):
        gradients = {name: random.normal(size=value.shape) for name, value in start.items()}
        updates, state = transform.update(
            {name: jnp.asarray(value, jnp.float32) for name, value in gradients.items()},
            state,
            ours,
        )
        ours = optax.apply_updates(ours, updates)
        for name, value in theirs.items():
            value.grad = torch.tensor(gradients[name])
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
        adamw.step()
        linear.step()
    for name, value in ours.items():
        assert np.abs(value - start[name]).max() > 0.005
        np.testing.assert_allclose(value, theirs[name].detach().numpy(), rtol=1e-5, atol=1e-6)
