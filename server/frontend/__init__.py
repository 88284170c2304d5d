"""The half of the HTTP process that knows no HTTP: variants, their workers, and who may wait.

A request's way: `variant` tokenizes it, `admission` lets it in or not, `supervisor` gives it to a worker, and its
`generation` holds what comes back.
"""
