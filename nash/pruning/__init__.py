"""From a dense model to a compact one. `prune` does the command's work, `walk` runs its stages in order.

A `student` is trained on an `objective` with its teacher (`distillation`); what is cut from it, and how, is
`nash.structure`.
"""
