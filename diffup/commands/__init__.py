"""The commands of `diffup`, one module each: `add` adds its parser, `run` runs it and imports what it needs."""
