"""Scoring: episodes, meter, evaluation of a model."""
