"""fairseq from its unpacked source distribution: imported, and asked for a network.

Which other packages it needs, `fairseq_oracle.py` says.
"""

import dataclasses
import logging
import pathlib
import sys
import types
import warnings

import torch

from tests.oracle_imports import without_compiled_libraries
from tests.oracles import Described

SPECIALS = 4  # symbols that fairseq puts before the units in every dictionary


def import_fairseq(directory: pathlib.Path) -> types.SimpleNamespace:
    """The parts of fairseq that are compared, from its unpacked source distribution.

    fairseq and the hydra and omegaconf that it asks for are older than Python 3.11, whose
    dataclasses refuse defaults that cannot be hashed: theirs are made hashable.
    """
    without_compiled_libraries()
    import torchaudio  # noqa: F401  fairseq would import it with the wrapped dataclass

    plain = dataclasses.dataclass

    def dataclass(cls=None, **options):
        def decorate(cls):
            if cls.__module__.split(".")[0] in ("fairseq", "hydra", "omegaconf"):
                options["unsafe_hash"] = True
            return plain(cls, **options)

        return decorate if cls is None else decorate(cls)

    logging.disable(logging.INFO)
    warnings.simplefilter("ignore", FutureWarning)  # its weight norm is the older one of torch's
    sys.path.insert(0, str(directory))
    dataclasses.dataclass = dataclass
    try:
        import fairseq
        import omegaconf
        from fairseq import checkpoint_utils, trainer
        from fairseq.criterions.hubert_criterion import HubertCriterion
        from fairseq.data.data_utils import compute_mask_indices
        from fairseq.dataclass.configs import FairseqConfig
        from fairseq.models.hubert import hubert
        from fairseq.tasks import hubert_pretraining
    finally:
        dataclasses.dataclass = plain
    return types.SimpleNamespace(
        version=fairseq.__version__,
        checkpoint_utils=checkpoint_utils,
        criterion=HubertCriterion,
        compute_mask_indices=compute_mask_indices,
        trainer=trainer,
        FairseqConfig=FairseqConfig,
        omegaconf=omegaconf.OmegaConf,
        hubert=hubert,
        pretraining=hubert_pretraining,
    )


def build(fairseq, config: Described, directory: pathlib.Path, seed: int):
    """A task, a model's configuration and a network that fairseq makes at random, no parameter left
    at its neutral value.

    The dictionaries that a task of fairseq reads are written to `directory`.
    """
    architecture, head, regularization = config.architecture, config.head, config.regularization
    labels = [f"km{i}" for i in range(len(head.codebook_sizes))]
    for name, classes in zip(labels, head.codebook_sizes, strict=True):
        units = "".join(f"{unit} 1\n" for unit in range(classes - SPECIALS))
        (directory / f"dict.{name}.txt").write_text(units)
    task = fairseq.pretraining.HubertPretrainingTask.setup_task(
        fairseq.pretraining.HubertPretrainingConfig(
            data=str(directory),
            labels=labels,
            label_rate=50.0,
            normalize=architecture.normalize_waveform,
        )
    )
    layers = zip(
        architecture.conv_channels,
        architecture.conv_kernels,
        architecture.conv_strides,
        strict=True,
    )
    torch.manual_seed(seed)
    described = fairseq.omegaconf.structured(
        fairseq.hubert.HubertConfig(
            _name="hubert",
            label_rate=50.0,
            extractor_mode={"group": "default", "layer": "layer_norm"}[architecture.frontend_norm],
            conv_feature_layers=str(list(layers)),
            encoder_layers=architecture.num_layers,
            encoder_embed_dim=architecture.dim,
            encoder_ffn_embed_dim=architecture.ffn_dim,
            encoder_attention_heads=architecture.num_heads,
            dropout=regularization.dropout,
            attention_dropout=regularization.attention_dropout,
            activation_dropout=regularization.activation_dropout,
            encoder_layerdrop=regularization.layer_drop,
            dropout_input=regularization.input_dropout,
            final_dim=head.projection_dim,
            untie_final_proj=True,
            layer_norm_first=architecture.pre_norm,
            logit_temp=head.temperature,
            feature_grad_mult=regularization.frontend_gradient_scale,
            mask_prob=0.8,
            conv_pos=architecture.positional_kernel,
            conv_pos_groups=architecture.positional_groups,
        )
    )
    model = task.build_model(described)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return task, described, model


def run_config(fairseq, task, described):
    """What fairseq's trainer wants to know, on CPU."""
    config = fairseq.omegaconf.structured(fairseq.FairseqConfig())
    config.common.cpu = True
    config.task, config.model = fairseq.omegaconf.structured(task.cfg), described
    config.criterion = {"_name": "hubert"}
    config.optimizer, config.lr_scheduler = {"_name": "adam"}, {"_name": "fixed"}
    return config
