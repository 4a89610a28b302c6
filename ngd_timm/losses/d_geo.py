"""D-Geo: a geometric prior on class embeddings, taken from what depression does to positive affect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.distributed import distributed
from ngd_timm.core.errors import InputError, choices
from ngd_timm.losses.functional import class_places, class_weight_matrix, gather_with_gradient, unit

__all__ = ["DGeoLoss", "DGeoTerms", "d_geo_terms"]


class DGeoTerms(NamedTuple):
    """The two terms (scalars) and, detached, each class's spread V_c (C,), NaN where the batch can't tell."""

    cap: Tensor
    separation: Tensor
    variance: Tensor


def d_geo_terms(embedding: Tensor, weight: Tensor, positive: Tensor, variance_cap: float, margins: Tensor) -> DGeoTerms:
    """Variance cap over the positive classes and separation over all pairs of classes of the batch.

    Args:
        embedding: (B, D).
        weight: (B, C): one-hot, or soft labels. A class is present with weight 1 or more, its spread is known with 2.
        positive: (C,) bool, the classes whose spread is capped.
        variance_cap: V_c above this costs.
        margins: (C, C) cosine distances wanted between class means.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        z = unit(embedding)
        weight = weight.to(z.dtype)
        mass = weight.sum(dim=0)
        divisor = mass.clamp_min(1)
        mean = weight.T @ z / divisor[:, None]
        spread = (weight.T @ z.square().sum(dim=1) / divisor - mean.square().sum(dim=1)).clamp_min(0)
        has_spread = mass >= 2
        capped = (positive & has_spread).to(z.dtype)
        cap = (capped * torch.relu(spread - variance_cap)).sum() / capped.sum().clamp_min(1)
        direction = unit(mean)
        present = mass >= 1
        pair = torch.triu(present[:, None] & present[None], diagonal=1).to(z.dtype)
        gap = torch.relu(margins.to(z.dtype) - (1 - direction @ direction.T))
        separation = (pair * gap).sum() / pair.sum().clamp_min(1)
        return DGeoTerms(cap, separation, torch.where(has_spread, spread, torch.nan).detach())


class DGeoLoss(nn.Module):
    """Cap the spread of positive classes, keep class means apart in proportion to their distance in valence/arousal.

    On unit embeddings z, with mu_c a class's mean in the batch and V_c = mean |z - mu_c|^2: cap = mean over positive
    classes of relu(V_c - variance_cap), the contraction of high valence that anhedonia suggests; separation = mean over
    pairs of relu(m - (1 - cos(mu_c, mu_c'))) with m = margin * |va_c - va_c'| / the largest such distance, so that the
    contraction does not cost separability and anger may stay beside fear. The loss is their sum. The paper gives
    words and two settings (hard_gate 0.2, intra_class), no formula: both terms and the margin are our reading. It is a
    geometric prior, nothing in it diagnoses anybody.

    With FER+'s frequencies under `majority` a batch of 128 holds fewer than two "disgust" seven times out of eight: see
    the class-aware sampler.

    Args:
        positive_classes: Names of the classes to cap.
        variance_cap: On unit vectors V_c lies in [0, 1].
        margin: Cosine distance wanted between the two classes farthest apart.
        gather_distributed: In training take the batch of all ranks, with gradients, as a per-rank variance is another
            loss; all ranks must then call it.
        classes: Names of the classes that targets index.
        class_anchors: (C, 2) valence/arousal; default `affect.anchors(classes)`.

    Shape:
        embedding (B, D); target (B,) indices or (B, C) weights, where -100 or a row of zeros is ignored; output:
        scalar, attached to the graph even at 0, which is what an empty batch gives.

    Examples:
        >>> loss = DGeoLoss()
        >>> float(loss(torch.ones(4, 8), torch.tensor([1, 1, 1, 1])))
        0.0

    Reference:
        NeuroGaze-Distill, arXiv 2509.11916, section on D-Geo.
    """

    citation = "NeuroGaze-Distill, arXiv 2509.11916 (2025); the formula is this package's reading of its words."

    positive: Tensor
    margins: Tensor

    def __init__(
        self,
        positive_classes: Sequence[str] = ("happiness", "surprise"),
        variance_cap: float = 0.2,
        margin: float = 0.5,
        gather_distributed: bool = False,
        classes: Sequence[str] = CLASSES,
        class_anchors: Tensor | None = None,
    ) -> None:
        super().__init__()
        for name in positive_classes:
            if name not in classes:
                raise choices("positive class", name, classes)
        if not (variance_cap >= 0 and margin >= 0):
            raise InputError(f"variance_cap and margin must be 0 or more, got {variance_cap} and {margin}")
        self.num_classes = len(classes)
        self.variance_cap, self.margin = float(variance_cap), float(margin)
        self.gather_distributed = gather_distributed
        places = class_places(classes, class_anchors)
        distance = torch.cdist(places, places)
        self.register_buffer("positive", torch.tensor([c in positive_classes for c in classes]), persistent=False)
        self.register_buffer("margins", margin * distance / distance.max().clamp_min(1e-12), persistent=False)

    def terms(self, embedding: Tensor, target: Tensor) -> DGeoTerms:
        """Cap, separation and the spread of each class, for logging."""
        weight = class_weight_matrix(target, self.num_classes, self.margins)
        if self.training and self.gather_distributed and distributed():
            embedding, weight = gather_with_gradient(embedding), gather_with_gradient(weight)
        return d_geo_terms(embedding, weight, self.positive, self.variance_cap, self.margins)

    def forward(self, embedding: Tensor, target: Tensor) -> Tensor:
        terms = self.terms(embedding, target)
        return terms.cap + terms.separation

    def extra_repr(self) -> str:
        return f"variance_cap={self.variance_cap}, margin={self.margin}, gather_distributed={self.gather_distributed}"
