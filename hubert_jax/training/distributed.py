"""The processes of one run: one a host, each with the devices of its own."""

import dataclasses

import jax

from hubert_jax.errors import InputError

AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes that train together. All are given the same configuration but for `index`.

    Attributes:
      coordinator: HOST:PORT of process 0; `auto` where the cluster knows who takes part (TPU pod,
        SLURM, Open MPI, Kubernetes); empty: this process trains alone.
      count, index: how many processes there are and which one this is, from 0; not with `auto`.
    """

    coordinator: str = ""
    count: int = 0
    index: int = 0

    def __post_init__(self) -> None:
        named = self.coordinator not in ("", AUTO)
        if named and not self.coordinator.rpartition(":")[2].isdigit():
            raise InputError(
                f"config.distributed.coordinator={self.coordinator}: expected HOST:PORT or {AUTO}"
            )
        if not (0 <= self.index < self.count if named else self.count == self.index == 0):
            raise InputError(
                f"config.distributed: count={self.count}, index={self.index}: expected "
                "0 <= index < count with coordinator=HOST:PORT, and neither without it"
            )


def join(config: DistributedConfig) -> None:
    """Waits for the other processes; from then on JAX sees the devices of all of them.

    Call it before anything asks JAX for its devices.

    Raises:
      InputError: the cluster does not say who takes part, or the others do not come.
    """
    if not config.coordinator or jax.distributed.is_initialized():
        return
    try:
        if config.coordinator == AUTO:
            jax.distributed.initialize()
        else:
            # All of this host's devices are this process's, whatever started it.
            jax.distributed.initialize(
                config.coordinator,
                config.count,
                config.index,
                cluster_detection_method="deactivate",
            )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"config.distributed.coordinator={config.coordinator}: the other processes cannot be "
            f"joined ({reason}); expected HOST:PORT of process 0 with count and index, or {AUTO} "
            "on a TPU pod or under SLURM, Open MPI or Kubernetes"
        ) from None


def is_first() -> bool:
    """Whether this process is the one that prints and writes what all of them know."""
    return jax.process_index() == 0


def announce(line: str) -> None:
    """Prints a line, in the first process alone."""
    if is_first():
        print(line, flush=True)
