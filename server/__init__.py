"""The online side. `python -m server` is the process that speaks HTTP; it starts one worker per variant.

The path shows which process runs a file: `api/`, `frontend/` and `text/` run in the HTTP process, which never loads
torch; `worker/` runs in a worker. Both use `engine/interface`, which handles no text, and the frames of `messages`.
`engine/` is a library that knows nothing of HTTP or processes.
"""
