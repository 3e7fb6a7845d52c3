"""What a run of the pipeline found: a table for the terminal and one self-contained HTML page."""
