"""Training of the decoder: cached features, seeded episodes, resumable runs."""
