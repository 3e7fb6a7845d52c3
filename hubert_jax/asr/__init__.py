"""Speech recognition: emissions, beam search and error rates."""
