"""From audio files to audio shards: what a corpus is, and writing a split."""
