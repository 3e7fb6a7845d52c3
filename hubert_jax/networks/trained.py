"""Loading a trained network, whatever wrote it, onto the devices."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hubert_jax import distributed
from hubert_jax.convert import formats
from hubert_jax.errors import InputError
from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import Architecture, Execution, Head
from hubert_jax.model.hubert import HubertForCTC
from hubert_jax.model.kernels import choice
from hubert_jax.model.kernels.choice import Kernels
from hubert_jax.networks.sharding_rules import SHARDING_RULES
from hubert_jax.training import sharding
from hubert_jax.unit_classes import Units
from hubert_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network that is used and no longer trained; its parameters lie on the mesh."""

    where: str  # `SCHEME:PATH` that it was loaded from
    params: dict[str, Any]  # `hubert`, and heads where there are any; float32
    architecture: Architecture
    head: Head | None
    vocabulary: Vocabulary | None  # of the CTC head
    units: Units | None  # of the pre-training head
    fingerprint: str  # stands for the weights in codebooks and results
    kernels: Kernels  # without dropout
    mesh: Mesh  # devices of this process


def load(
    where: str,
    mesh: Mesh | None = None,
    execution: Execution | None = None,
    key: str = "config.checkpoint",
) -> Trained:
    """The network that `where` names, its weights on the devices of `mesh`, by default all here.

    `where`, from the configuration's `key`, is hf:DIR, fairseq:FILE, torchaudio:FILE or orbax:DIR
    (the newest good checkpoint; DIR@STEP, DIR@best and DIR@meanN as of `restore_parameters`).
    Without `execution` it runs in float32.

    Raises InputError for a missing or damaged file, or a network that is no HuBERT.
    """
    if mesh is None:
        mesh = sharding.make_mesh(sharding.MeshConfig(), jax.local_devices())
    shardings = functools.partial(sharding.parameter_shardings, mesh, rules=SHARDING_RULES)
    network = formats.read(where, key, shardings)
    params = dict(network.params)
    for note in network.notes:
        distributed.announce(f"{where}: {note}")
    return Trained(
        where=where,
        params=jax.device_put(params, shardings(params)),
        architecture=network.architecture,
        head=network.head,
        vocabulary=network.vocabulary,
        units=network.units,
        fingerprint=network.fingerprint,
        kernels=choice.choose(
            execution or Execution(),
            network.architecture,
            activations=sharding.attention_sharding(mesh),
        ),
        mesh=mesh,
    )


def as_initialised(trained: Trained, seed: int = 0) -> Trained:
    """The same network with fresh weights instead of its own: what training has to beat."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, trained.params["hubert"])
    kernels = choice.choose(Execution(), trained.architecture)
    model = HubertForCTC(trained.architecture, 1, kernels)  # one class: only the encoder is kept
    silence = jnp.zeros((1, num_samples(2)))
    create = jax.jit(
        lambda key: model.init(key, silence)["params"]["hubert"],
        out_shardings=shardings,
        **distributed.compiled_here(),
    )
    return dataclasses.replace(
        trained, params={"hubert": create(jax.random.key(seed))}, head=None, vocabulary=None
    )


def require_ctc(trained: Trained) -> Vocabulary:
    """The vocabulary of its CTC head; raises InputError where there is none."""
    if trained.vocabulary is None:
        raise InputError(
            f"{trained.where}: has no CTC head; expected a network of fine-tuning, for example "
            "orbax:WORKDIR/finetune/checkpoints"
        )
    return trained.vocabulary
