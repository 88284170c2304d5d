"""The process of one variant: an engine fed through the socket it was started with."""
