"""`nash finetune`: a dense model trained by a recipe, assessed and published."""
