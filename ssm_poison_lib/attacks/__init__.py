"""Attacks by added training examples with correct labels: gradient matching on any model and any sequences."""
