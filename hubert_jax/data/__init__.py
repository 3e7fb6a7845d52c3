"""Audio shards and label shards, as every job reads them."""
