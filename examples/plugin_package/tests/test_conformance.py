from diffup.backbones.testing import BackboneConformance


class TestHog(BackboneConformance):
    backbone = "hog"
