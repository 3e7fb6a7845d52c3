"""Audio shards and label shards, as every job reads them."""

import os

# TensorFlow would announce CPU kernels that nothing here uses; its errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
