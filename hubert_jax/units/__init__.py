"""Units: features, codebooks, label shards and their phonetic quality."""
