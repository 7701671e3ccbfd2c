"""Training a decoder: cached features, seeded episodes, resumable runs."""
