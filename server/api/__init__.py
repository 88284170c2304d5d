"""The half of the HTTP process that speaks HTTP. `app` puts it together."""
