"""Iterative distill-then-heal training for language models."""
