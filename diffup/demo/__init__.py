"""A web page to try few-example segmentation: `diffup demo`, or `diffup.demo.serve.serve(encoders)`.

A visitor's `session` has `examples`, which `marks` annotate, and `photos`, in which `find` looks for the classes and
which `actions` correct; `views` and `downloads` draw and write results. These do not use Gradio. `page` is the layout,
with a `canvas` to draw on; `wiring` connects it by `events`, and `serve` serves it on the loopback interface. It
needs the extra `demo`.
"""
