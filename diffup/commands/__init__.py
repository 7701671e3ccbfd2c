"""The commands of `diffup`, a module each: `add` makes its parser, `run` does it. Nothing heavy is imported before."""
