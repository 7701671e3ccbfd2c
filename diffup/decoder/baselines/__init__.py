"""Baselines of the decoder: a StyleGAN2 generator (paper Table 8) and the fused prior without training."""
