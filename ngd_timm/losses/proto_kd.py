"""Proto-KD: pull an embedding towards its class's place on a frozen valence/arousal grid of EEG prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError, choices
from ngd_timm.losses.functional import class_places, class_weight_matrix, mean_by, unit

if TYPE_CHECKING:
    from ngd_timm.grid.prototypes import PrototypeGrid

__all__ = ["ProtoKDLoss", "proto_kd_loss"]


def proto_kd_loss(
    embedding: Tensor,
    prototypes: Tensor,
    target_distribution: Tensor,
    tau: float = 0.90,
    gather_distributed: bool = False,
) -> Tensor:
    """Mean KL(q_pro || softmax(cos(embedding, prototypes) / tau)).

    Args:
        embedding: (B, D), any float dtype; computed in at least float32.
        prototypes: (K, D), rows of unit length.
        target_distribution: q_pro, (B, K). A row counts as much as it sums to: 1, or 0 where it is ignored.
        tau: Temperature, above 0.
        gather_distributed: Divide by the rows of all ranks, which must then all call it.

    Returns:
        Scalar, 0 or more; 0, attached to the graph, where no row counts.

    Examples:
        >>> p = torch.eye(3)
        >>> q = torch.softmax(p[:1] @ p.T / 0.9, dim=1)
        >>> float(proto_kd_loss(p[:1], p, q).abs() < 1e-6)
        1.0
    """
    with torch.autocast(embedding.device.type, enabled=False):
        z = unit(embedding)
        q = target_distribution.to(z.dtype)
        log_student = torch.log_softmax(z @ prototypes.to(z.dtype).T / tau, dim=1)
        mass = q.sum(dim=1)
        # a row of mass m has m KL(q/m || student)
        rows = (torch.xlogy(q, q) - q * log_student).sum(dim=1) - torch.xlogy(mass, mass)
        return mean_by(rows.sum(), mass.sum(), gather_distributed)


class ProtoKDLoss(nn.Module):
    """KL between a class's soft place on the prototype grid and where the embedding lies on it.

    a_y(k) is proportional to exp(-|va_y - c_k|^2 / 2 sigma^2): the class's place among the cell centres c_k.
    `target="prototype"`: p_y = unit(sum_k a_y(k) p_k) and q_pro = softmax(p_y . p_k / tau), so the loss is 0 where the
    embedding points along p_y. `target="va"`: q_pro = a_y, the geometry of the plane alone: a control without EEG in
    the target. The paper says that q_pro is derived from the prototypes and no more. Both targets, sigma, and the
    cosine of unit vectors over tau, within 1/tau of 0, are our reading; the authors' `temperature: 5.0` has no part.

    Needs embeddings in the grid's space: a linear projection of the pre-logits (`wrap` makes it).

    Args:
        grid: A `PrototypeGrid`.
        tau: Temperature of both distributions; the paper's .90 makes a very soft target.
        target: "prototype" or "va".
        sigma: Width of a class's place, in units of valence/arousal.
        classes: Names of the classes that targets index.
        class_anchors: (C, 2) valence/arousal of the classes; default: `affect.anchors(classes)`.
        gather_distributed: In training divide by the rows of all ranks, which must then all call it.

    Shape:
        embedding (B, D); target (B,) indices or (B, C) weights, where -100 or a row of zeros is no class;
        valence_arousal (B, 2) or None, where a row of NaN means "not known, take the class"; a row with neither is
        ignored; output: scalar, 0 where no row counts.

    Raises:
        InputError: A setting out of range, or an embedding whose width is not the grid's.

    Examples:
        >>> from ngd_timm import PrototypeGrid
        >>> loss = ProtoKDLoss(PrototypeGrid.random(64), tau=0.1)
        >>> bool(loss(torch.randn(4, 64), torch.tensor([0, 1, 2, 3])) > 0)
        True

    Reference:
        NeuroGaze-Distill, arXiv 2509.11916, section on Proto-KD.
    """

    citation = "NeuroGaze-Distill, arXiv 2509.11916 (2025); the target distribution is this package's reading of it."

    prototypes: Tensor
    cell_centers: Tensor
    class_anchors: Tensor
    class_targets: Tensor

    def __init__(
        self,
        grid: PrototypeGrid,
        tau: float = 0.90,
        target: Literal["prototype", "va"] = "prototype",
        sigma: float = 0.4,
        classes: Sequence[str] = CLASSES,
        class_anchors: Tensor | None = None,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if target not in ("prototype", "va"):
            raise choices("Proto-KD target", target, ("prototype", "va"))
        if not (tau > 0 and sigma > 0):
            raise InputError(f"tau and sigma must be above 0, got tau={tau}, sigma={sigma}")
        self.tau, self.sigma, self.target = float(tau), float(sigma), target
        self.num_classes = len(classes)
        self.gather_distributed = gather_distributed
        places = class_places(classes, class_anchors)
        self.register_buffer("prototypes", grid.prototypes.clone().float(), persistent=False)
        self.register_buffer("cell_centers", grid.centers.clone().float(), persistent=False)
        self.register_buffer("class_anchors", places, persistent=False)
        self.register_buffer("class_targets", self.target_distribution(places), persistent=False)

    def target_distribution(self, valence_arousal: Tensor) -> Tensor:
        """q_pro of points in the plane: (N, 2) -> (N, K)."""
        distance = (valence_arousal[:, None] - self.cell_centers.to(valence_arousal.dtype)).square().sum(dim=2)
        place = torch.softmax(-distance / (2 * self.sigma**2), dim=1)
        if self.target == "va":
            return place
        prototypes = self.prototypes.to(place.dtype)
        return torch.softmax(unit(place @ prototypes) @ prototypes.T / self.tau, dim=1)

    def forward(self, embedding: Tensor, target: Tensor, valence_arousal: Tensor | None = None) -> Tensor:
        if embedding.ndim != 2 or embedding.shape[1] != self.prototypes.shape[1]:
            raise InputError(
                f"embedding is {tuple(embedding.shape)}, the grid needs (B, {self.prototypes.shape[1]}); wrap the "
                "backbone with grid=grid to get a projection of that width"
            )
        with torch.autocast(embedding.device.type, enabled=False):
            weight = class_weight_matrix(target, self.num_classes, self.class_targets)
            q = weight @ self.class_targets
            if valence_arousal is not None:
                known = valence_arousal.isfinite().all(dim=1, keepdim=True)
                points = torch.where(known, valence_arousal, 0).to(self.class_targets.dtype)
                mass = weight.sum(dim=1, keepdim=True)
                # a row without a class has a place where it is given one
                q = torch.where(known, torch.where(mass == 0, 1, mass) * self.target_distribution(points), q)
        return proto_kd_loss(embedding, self.prototypes, q, self.tau, self.training and self.gather_distributed)

    def place(self, embedding: Tensor) -> Tensor:
        """Valence and arousal that embeddings say by where they lie on the grid: (B, D) -> (B, 2).

        The mean of the cells' centres under softmax(cos(embedding, prototypes) / tau).
        """
        with torch.autocast(embedding.device.type, enabled=False):
            z = unit(embedding)
            cells = torch.softmax(z @ self.prototypes.to(z.dtype).T / self.tau, dim=1)
            return cells @ self.cell_centers.to(z.dtype)

    def extra_repr(self) -> str:
        return f"tau={self.tau}, target={self.target!r}, sigma={self.sigma}, cells={len(self.prototypes)}"
