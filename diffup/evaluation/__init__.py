"""Evaluation of models: episodes, meter, protocols, reports."""
