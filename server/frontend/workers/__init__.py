"""The worker of a variant as this process sees it: its life, its frames, and the generations it was given."""
