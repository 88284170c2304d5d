"""Pages that look alike: their colours and charts, and the page of one run."""
