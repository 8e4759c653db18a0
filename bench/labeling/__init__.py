"""Labeling functions from 100 labels against plain few-shot supervision, on texts."""
