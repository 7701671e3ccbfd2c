"""Sharing a decoder: the Hugging Face hub, model cards, ONNX."""
