"""What a run found: a table for the terminal and one self-contained HTML page."""
