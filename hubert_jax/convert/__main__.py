"""Converts a network, heads included, between formats; what changes on the way is printed.

Reading never runs code that a file carries; the target appears complete or not at all.
"""

import argparse
import dataclasses
import sys
import time
from typing import NoReturn

from hubert_jax import files, job, storage
from hubert_jax.config import MayChange, Reads
from hubert_jax.errors import InputError

VERSION = 2  # raise it when the same source gives another target

_FORMATS = """
formats:
  hf:DIR            directory of Hugging Face transformers; a pre-training head lies in
                    pretraining_head.safetensors beside the model
  fairseq:FILE      checkpoint of fairseq (.pt), of HubertModel or HubertCtc; needs torch
  torchaudio:FILE   state dict of torchaudio (.pt), of HuBERTPretrainModel or Wav2Vec2Model, with
                    the configuration in FILE.json and what has no home there in
                    FILE.rest.safetensors; without them the published sizes are recognised by
                    their shapes; needs torch
  orbax:DIR         checkpoint directory of this package, WORKDIR/train/checkpoints

torch is an extra: pip install --editable '.[torch]'

example:
  python -m hubert_jax.convert --from=fairseq:hubert_base_ls960.pt --to=hf:hubert-base
"""


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """From one `SCHEME:PATH` to another; a target `SCHEME:` alone is WORKDIR/convert/model.

    Without a workdir the result is `PATH.result.json` beside the target.
    """

    workdir: MayChange[str]
    source: Reads[str]
    target: str

    def __post_init__(self) -> None:
        from hubert_jax.convert import formats

        formats.parse(self.target + "model" * self.target.endswith(":"), "--to")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help shows the usage")


def run(config: ConvertConfig) -> dict:
    """Converts; returns the result as written. Raises InputError where either end is unusable."""
    started = time.monotonic()
    from hubert_jax.convert import formats

    source, target, workdir = config.source, config.target, config.workdir
    own = bool(workdir) and target.endswith(":")
    if own:
        target = f"{target}{workdir}/convert/model"
    scheme, path = formats.parse(target, "--to")
    if formats.parse(source, "--from")[1].resolve() == path.resolve():
        raise InputError(f"--to={target}: the same place as --from={source}")
    if workdir:
        files.require_writable(workdir)
    elif scheme == "orbax" and path.exists():
        raise InputError(f"--to={target}: exists; name a directory that does not")
    network = formats.read(source)
    if own and path.is_dir():  # of an earlier call, which may have been interrupted
        storage.path(workdir, "convert", "result.json").unlink(missing_ok=True)
        storage.remove_tree(path)
    written = formats.write(target, network)
    notes = [*network.notes, *written.notes]
    result = {
        "kind": network.kind,
        "from": source,
        "to": target,
        "parameters": network.num_parameters,
        "notes": notes,
        "inputs": {"network": network.fingerprint},
        "digests": written.digests,
    }
    print(f"{result['parameters']:,} parameters ({network.kind}) in {target}", flush=True)
    for note in notes:
        print(note, flush=True)
    beside = None if workdir else f"{path}.result.json"
    return job.finish(workdir, "convert", result, started, beside)


def main(arguments: list[str]) -> None:
    """The command line; exit status as of every job's `main`."""
    parser = _Parser(
        "python -m hubert_jax.convert",
        description=__doc__,
        epilog=_FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--from", dest="source", metavar="FORMAT:PATH", required=True)
    parser.add_argument("--to", dest="target", metavar="FORMAT:PATH", required=True)
    parser.add_argument(
        "--workdir",
        default="",
        metavar="DIR",
        help="write DIR/convert/result.json, and the target of --to=FORMAT: to DIR/convert/model; "
        "by default PATH.result.json beside the target",
    )

    def work() -> None:
        found = parser.parse_args(arguments)
        run(ConvertConfig(found.workdir, found.source, found.target))

    job.guarded(work)


if __name__ == "__main__":
    main(sys.argv[1:])
