"""The processes of one run, one a host."""

import dataclasses

import jax

from hubert_jax.errors import InputError

_AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes that train together; their configurations differ in `index` alone.

    With the coordinator `auto` the cluster says who takes part (TPU pod, SLURM, Open MPI,
    Kubernetes).
    """

    coordinator: str = ""  # HOST:PORT of process 0, or auto; empty: trains alone
    count: int = 0  # of processes
    index: int = 0  # of this one

    def __post_init__(self) -> None:
        named = self.coordinator not in ("", _AUTO)
        if named and not self.coordinator.rpartition(":")[2].isdigit():
            raise InputError(
                f"config.distributed.coordinator={self.coordinator}: expected HOST:PORT or {_AUTO}"
            )
        if not (0 <= self.index < self.count if named else self.count == self.index == 0):
            raise InputError(
                f"config.distributed: count={self.count}, index={self.index}: expected "
                "0 <= index < count with coordinator=HOST:PORT, and neither without it"
            )


def join(config: DistributedConfig) -> None:
    """Waits for the other processes; call it before anything asks JAX for its devices.

    Raises InputError where the cluster does not say who takes part, or the others do not come.
    """
    if not config.coordinator or jax.distributed.is_initialized():
        return
    try:
        if config.coordinator == _AUTO:
            jax.distributed.initialize()
        else:
            place = (config.coordinator, config.count, config.index)
            # All of this host's devices are this process's, whatever started it.
            jax.distributed.initialize(*place, cluster_detection_method="deactivate")
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"config.distributed.coordinator={config.coordinator}: the other processes cannot be "
            f"joined ({reason}); expected HOST:PORT of process 0 with count and index, or {_AUTO} "
            "on a TPU pod or under SLURM, Open MPI or Kubernetes"
        ) from None


def is_first() -> bool:
    """Whether this process prints and writes for all of them."""
    return jax.process_index() == 0


def announce(line: str) -> None:
    """Prints a line, in the first process alone."""
    if is_first():
        print(line, flush=True)
