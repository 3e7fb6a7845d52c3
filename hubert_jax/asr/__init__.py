"""Speech recognition: vocabulary, CTC loss, beam search and error rates."""
