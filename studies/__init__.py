"""Runs of many configurations, and tables of what was tried."""
