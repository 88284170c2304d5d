"""From raw rows to figures and a verdict. Pure, except for the progress display."""
