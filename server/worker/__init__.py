"""The process of one variant: an engine, fed through the socket that it was started with."""
