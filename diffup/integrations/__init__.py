"""diffup inside other systems; each module needs an extra of its name."""
