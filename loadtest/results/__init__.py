"""From raw rows to figures and a verdict. Pure, but for the progress that a person sees."""
