"""Processes and meshes that cannot be meant are refused."""

import jax
import numpy as np
import pytest

from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError
from hubert_jax.training import sharding


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(coordinator="host"), "coordinator=host: expected HOST:PORT or auto"),
        (dict(coordinator="host:1", count=2, index=2), "count=2, index=2: expected 0 <= index"),
        (dict(coordinator="host:1"), "count=0, index=0: expected 0 <= index < count"),
        (dict(coordinator="auto", count=2), "count=2, index=0: .*neither without it"),
        (dict(count=2), "count=2, index=0: .*neither without it"),
    ],
)
def test_processes_that_cannot_be_meant_are_refused(values, message):
    with pytest.raises(InputError, match=f"^config.distributed.*{message}"):
        DistributedConfig(**values)


def test_rows_of_a_batch_stay_on_one_process(monkeypatch):
    class Device:
        def __init__(self, index):
            self.process_index = index // 2

    devices = np.array([Device(index) for index in range(8)], object)

    class Grid:
        def __init__(self, shape, *_):
            self.devices = devices.reshape(shape)

    monkeypatch.setattr(jax, "make_mesh", Grid)
    sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    with pytest.raises(InputError, match="config.mesh.tensor=4: lies across processes"):
        sharding.make_mesh(sharding.MeshConfig(tensor=4))


@pytest.mark.parametrize("values", [dict(data=-2), dict(fsdp=0), dict(tensor=-1)])
def test_impossible_axes_are_refused(values):
    with pytest.raises(InputError, match=f"config.mesh.{next(iter(values))}=.* 1 or more"):
        sharding.MeshConfig(**values)
