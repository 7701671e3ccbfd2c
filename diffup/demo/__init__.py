"""A web page to try few-shot segmentation: `diffup demo`, or `diffup.demo.serve.serve(encoders)`.

What the page does is in `shots`, `session`, `views` and `downloads`, which know nothing of Gradio; `page` lays it out
with the help of `events`, and `serve` puts it on the loopback interface. It needs `pip install "diffup[demo]"`.
"""
