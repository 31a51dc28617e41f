"""Attacks by added examples with correct labels: gradient matching on any model and sequences."""
