"""CTC fine-tuning of the large networks, by the amount of transcribed speech."""
