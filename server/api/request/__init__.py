"""From the bytes of a body to what is asked: strict schemas, and the parameters of a request."""
