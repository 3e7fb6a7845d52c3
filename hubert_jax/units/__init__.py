"""Units: features, codebooks, label shards, and the phones that they are compared with."""
