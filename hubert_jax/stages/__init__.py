"""The stages of a pipeline: what they are, how they fit together, which of them run again."""
