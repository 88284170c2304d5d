"""Compact models as classes of transformers, for training and for whoever loads them with it."""
