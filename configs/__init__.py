"""Configurations: ml_collections ConfigDicts, each value with its source."""
