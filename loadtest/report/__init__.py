"""The page that a load test leaves."""
