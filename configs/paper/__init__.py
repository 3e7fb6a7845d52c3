"""The paper as pipelines: all stages of LibriSpeech and of Libri-light, and their rehearsals."""
