"""The online side. `python -m server` is the process that speaks HTTP; it starts a worker for every variant.

Which process runs a file shows in its path: `api/` and `frontend/` run in the HTTP process, which holds no torch;
`worker/` runs in a worker. Both use `text`-free `engine/interface` and the frames of `messages`. `engine/` is a
library: it knows no HTTP and no process.
"""
