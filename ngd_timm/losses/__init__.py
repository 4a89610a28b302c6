"""Drop-in losses: each is one small module, called as `loss(embedding, target)`; logit KD with two sets of logits.

May import grid and core.
"""

from ngd_timm.losses.cross_entropy import class_weights, cross_entropy
from ngd_timm.losses.d_geo import DGeoLoss, d_geo_terms
from ngd_timm.losses.logit_kd import LogitKDLoss, logit_kd_loss
from ngd_timm.losses.neurogaze import COMPONENTS, NeuroGazeLoss, ramp_weight
from ngd_timm.losses.proto_kd import ProtoKDLoss, proto_kd_loss

__all__ = [
    "COMPONENTS",
    "DGeoLoss",
    "LogitKDLoss",
    "NeuroGazeLoss",
    "ProtoKDLoss",
    "class_weights",
    "cross_entropy",
    "d_geo_terms",
    "logit_kd_loss",
    "proto_kd_loss",
    "ramp_weight",
]
