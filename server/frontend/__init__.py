"""The half of the HTTP process that does not deal with HTTP: variants, their workers, and admission to the queue.

The path of a request: `requests` says what it may be, `variant` tokenizes it, and in `workers`, `admission` accepts or
refuses it, `supervisor` gives it to a worker, and its `generation` holds what comes back.
"""
