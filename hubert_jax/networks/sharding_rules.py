"""How the parameters of HuBERT, and of a language model, are divided over the axes of the mesh."""

from jax.sharding import PartitionSpec as P

# Pattern of a parameter's path -> partition. `fsdp` cuts matrices and kernels, `tensor` heads and
# feed-forward units. Transformer parameters carry a leading layer axis.
SHARDING_RULES: tuple[tuple[str, P], ...] = (
    (r"hubert/frontend/conv_\d+/kernel", P(None, None, "fsdp")),
    (r"hubert/frontend/norm_\d+/.*", P()),
    (r"hubert/(frontend_norm|encoder_norm)/.*", P()),
    (r"hubert/feature_projection/kernel", P(None, "fsdp")),
    (r"hubert/feature_projection/bias", P()),
    (r"hubert/mask_embedding", P()),
    (r"hubert/positional/direction", P(None, None, "fsdp")),
    (r"hubert/positional/(magnitude|bias)", P()),
    (r"(hubert/)?transformer/.*/(query|key|value|ffn_in)/kernel", P(None, "fsdp", "tensor")),
    (r"(hubert/)?transformer/.*/(query|key|value|ffn_in)/bias", P(None, "tensor")),
    (r"(hubert/)?transformer/.*/(output|ffn_out)/kernel", P(None, "tensor", "fsdp")),
    (r"(hubert/)?transformer/.*/(output|ffn_out)/bias", P()),
    (r"(hubert/)?transformer/.*/(attention_norm|ffn_norm)/.*", P()),
    (r"final_proj_\d+/kernel", P("fsdp", None)),
    (r"final_proj_\d+/bias", P()),
    (r"label_embeddings_\d+", P(None, "fsdp")),
    (r"ctc_head/.*", P()),
    (r"embedding_\d+", P("fsdp", None)),
    (r"(widen|narrow)_\d+|band_embeddings|final_norm/.*", P()),
    (r"adapters/.*/(query|key|value|ffn_in)_up", P(None, None, "tensor")),
    (r"adapters/.*/(query|key|value|ffn_in)_down", P()),
    (r"adapters/.*/(output|ffn_out)_down", P(None, "tensor", None)),
    (r"adapters/.*/(output|ffn_out)_up", P()),
)
