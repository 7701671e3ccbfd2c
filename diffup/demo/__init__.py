"""A web page to try few-example segmentation: `diffup demo`, or `diffup.demo.serve.serve(encoders)`.

The logic is in `examples`, `session`, `views` and `downloads`, which do not use Gradio; `page` is the layout, `events`
connects it, and `serve` serves it on the loopback interface. It needs `pip install "diffup[demo]"`.
"""
