"""A running server, as the commands that steer it see it: over HTTP, with the standard library alone."""
