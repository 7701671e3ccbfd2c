"""A server for labelling tools: it learns from what people save, and proposes masks for what is left.

`shots` keeps the annotations, `learner` makes classes of them, `photos` finds the images, `label_studio` and
`xanylabeling` speak to the tools, `app` answers requests. It needs the extra `serve`.
"""
