"""Priors: pure functions from frozen features to a backbone-agnostic `Condition` (BAFT and UAPF)."""

from diffup.priors.condition import Condition, build_condition
from diffup.priors.config import PriorConfig
from diffup.priors.features import SupportFeatures

__all__ = ["Condition", "PriorConfig", "SupportFeatures", "build_condition"]
