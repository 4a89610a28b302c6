"""The whole objective: cross-entropy, logit KD, Proto-KD and ramped D-Geo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.distributed import distributed
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.recipe import LossConfig, Recipe, load_recipe, ramp_shares
from ngd_timm.losses.cross_entropy import class_weights as weights_of_counts
from ngd_timm.losses.cross_entropy import cross_entropy
from ngd_timm.losses.d_geo import DGeoLoss
from ngd_timm.losses.logit_kd import KDMode, LogitKDLoss
from ngd_timm.losses.proto_kd import ProtoKDLoss

if TYPE_CHECKING:
    from ngd_timm.grid.prototypes import PrototypeGrid


COMPONENTS = ("ce", "kd", "proto_kd", "d_geo")


def ramp_weight(epoch: float, start: float, end: float) -> float:
    """0 up to `start`, half a cosine up to 1 at `end`: our reading of the authors' `late_cosine`.

    Examples:
        >>> [round(ramp_weight(e, 20, 60), 2) for e in (0, 20, 40, 60, 99)]
        [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if epoch >= end:
        return 1.0
    if epoch <= start:
        return 0.0
    return 0.5 - 0.5 * math.cos(math.pi * (epoch - start) / (end - start))


_PAPER = load_recipe(Recipe, "b3_full").loss
"""The authors' settings; where they give none (`sigma`, `margin`) our reading."""


class NeuroGazeLoss(nn.Module):
    """lambda_ce CE + lambda_kd KD + lambda_proto Proto-KD + lambda_geo ramp(epoch) D-Geo.

    Every default is that of the recipe `b3_full`, the authors' settings, but for class weights: those need the counts
    of a training set.

    Args:
        grid: A `PrototypeGrid`; None with `proto_kd=0`.
        num_classes: C.
        epochs: Length of the run, which the ramp is a share of.
        classes: Names of the C classes in order; default: `CLASSES`.
        ce, kd, proto_kd, d_geo: The lambdas; 0 leaves a term out. KD is also left out of a call without teacher logits.
        kd_mode, temperature: See `LogitKDLoss`.
        tau, sigma, target: See `ProtoKDLoss`.
        ramp: (start, end) of D-Geo as shares of the run: epochs 20 to 60 of 100 are (0.2, 0.6).
        positive_classes, variance_cap, margin: See `DGeoLoss`.
        d_geo_on: "embedding", or "features": D-Geo on the backbone's pre-logits, whatever projection Proto-KD acts on.
        label_smoothing: Of the cross-entropy.
        class_weights: Of the cross-entropy: (C,), or a rule with the training set's counts a class, as in
            `class_weights=("effective_number", counts)` (see `losses.class_weights`); None weighs all alike.
        gather_distributed: For DistributedDataParallel: in training the terms are those of the joined batch, so every
            rank must make every call. In evaluation (`criterion.eval()`) a rank waits for no other.

    Shape:
        logits (B, C); embedding (B, D), None where no term needs it; target (B,) or (B, C); teacher_logits (B, C) or
        None; valence_arousal (B, 2) or None; features (B, F), for `d_geo_on="features"` alone. Output: dict of scalars:
        "loss", each active component unweighted, and "positive_variance", the mean spread of the positive classes of
        the batch (NaN where unknown). A row whose target is -100, or all zeros, counts in KD, in Proto-KD where its
        valence and arousal are given (not NaN), and in no other term.

    Raises:
        InputError: Classes or class weights that don't match, Proto-KD without a grid, a ramp that is not two shares.

    Examples:
        >>> from ngd_timm import PrototypeGrid
        >>> criterion = NeuroGazeLoss(PrototypeGrid.random(64), epochs=10)
        >>> losses = criterion(torch.randn(4, 8), torch.randn(4, 64), torch.tensor([0, 1, 1, 2]), epoch=5)
        >>> sorted(losses)
        ['ce', 'd_geo', 'loss', 'positive_variance', 'proto_kd']

    Reference:
        NeuroGaze-Distill, arXiv 2509.11916.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        grid: PrototypeGrid | None,
        num_classes: int = 8,
        epochs: int = 100,
        *,
        classes: Sequence[str] | None = None,
        ce: float = _PAPER.ce,
        kd: float = _PAPER.kd,
        kd_mode: KDMode = _PAPER.kd_mode,
        temperature: float = _PAPER.temperature,
        proto_kd: float = _PAPER.proto_kd,
        tau: float = _PAPER.tau,
        sigma: float = _PAPER.sigma,
        target: Literal["prototype", "va"] = _PAPER.target,
        d_geo: float = _PAPER.d_geo,
        ramp: tuple[float, float] = _PAPER.ramp,
        positive_classes: Sequence[str] = _PAPER.positive_classes,
        variance_cap: float = _PAPER.variance_cap,
        margin: float = _PAPER.margin,
        d_geo_on: Literal["embedding", "features"] = _PAPER.d_geo_on,
        label_smoothing: float = _PAPER.label_smoothing,
        class_weights: Tensor | tuple[str, np.ndarray | Sequence[float]] | None = None,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if classes is None and num_classes != len(CLASSES):
            raise InputError(f"num_classes={num_classes} needs classes=[...] with the {num_classes} names in order")
        classes = CLASSES if classes is None else tuple(classes)
        if len(classes) != num_classes:
            raise InputError(f"num_classes={num_classes} but classes names {len(classes)}: {', '.join(classes)}")
        if grid is None and proto_kd > 0:
            raise InputError("Proto-KD needs a grid; pass PrototypeGrid.default() or proto_kd=0")
        if d_geo_on not in ("embedding", "features"):
            raise choices("d_geo_on", d_geo_on, ("embedding", "features"))
        self.classes, self.epochs, self.ramp = classes, epochs, ramp_shares(ramp)
        self.weights = {"ce": ce, "kd": kd, "proto_kd": proto_kd, "d_geo": d_geo}
        self.label_smoothing = label_smoothing
        self.kd = LogitKDLoss(kd_mode, temperature)
        self.proto_kd = None if grid is None else ProtoKDLoss(grid, tau, target, sigma, classes)
        self.d_geo = DGeoLoss(positive_classes, variance_cap, margin, classes=classes) if d_geo > 0 else None
        self.d_geo_on = d_geo_on
        self.gather_distributed = gather_distributed
        self.register_buffer("class_weights", _class_weights(class_weights, num_classes), persistent=False)

    @classmethod
    def from_config(
        cls,
        config: LossConfig,
        grid: PrototypeGrid | None,
        *,
        classes: Sequence[str],
        epochs: int,
        class_counts: np.ndarray | Sequence[float],
        gather_distributed: bool = False,
    ) -> NeuroGazeLoss:
        """The objective of a recipe's loss section; `class_counts` (C,) are for its rule of class weights.

        Examples:
            >>> config = LossConfig(ce=1.0, class_weights="balanced")
            >>> loss = NeuroGazeLoss.from_config(config, None, classes=("fear", "anger"), epochs=5, class_counts=[1, 3])
            >>> loss.class_weights
            tensor([1.5000, 0.5000])
        """
        settings = config.model_dump(exclude={"proto_share", "class_weights"})
        if config.proto_share is not None:
            settings["proto_kd"] = 1.0  # any positive weight puts the term in
        return cls(
            grid,
            len(classes),
            epochs,
            classes=classes,
            class_weights=(config.class_weights, class_counts),
            gather_distributed=gather_distributed,
            **settings,
        )

    @property
    def gather_distributed(self) -> bool:
        """Whether the terms of a training step are those of all ranks' batches; setting it sets it in every term."""
        return self.kd.gather_distributed

    @gather_distributed.setter
    def gather_distributed(self, gather: bool) -> None:
        for term in (self.kd, self.proto_kd, self.d_geo):
            if term is not None:
                term.gather_distributed = gather

    @property
    def communicates(self) -> bool:
        """Whether a call now needs the other ranks."""
        return self.training and self.gather_distributed and distributed()

    @property
    def needs_features(self) -> bool:
        """Whether a call needs the features beside the embedding."""
        return self.d_geo is not None and self.d_geo_on == "features"

    def ramp_at(self, epoch: float) -> float:
        """Weight of D-Geo's ramp at an epoch."""
        start, end = self.ramp
        return ramp_weight(epoch, start * self.epochs, end * self.epochs)

    def effective_weights(self, epoch: float) -> dict[str, float]:
        """The lambdas as they act at an epoch, the ramp included."""
        return {**self.weights, "d_geo": self.weights["d_geo"] * self.ramp_at(epoch)}

    def components(
        self,
        logits: Tensor,
        embedding: Tensor | None,
        target: Tensor,
        teacher_logits: Tensor | None = None,
        valence_arousal: Tensor | None = None,
        features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The active terms, unweighted and attached, and "positive_variance".

        Gathered, each process gets its part of them: their mean over the processes is the joined batch's.
        """
        ce = cross_entropy(logits, target, self.class_weights, self.label_smoothing, self.communicates)
        terms = {"ce": ce}
        if self.weights["kd"] > 0 and teacher_logits is not None:
            terms["kd"] = self.kd(logits, teacher_logits)
        if self.proto_kd is not None and self.weights["proto_kd"] > 0:
            terms["proto_kd"] = self.proto_kd(_needed(embedding), target, valence_arousal)
        if self.d_geo is not None:
            place = _needed(features, "features") if self.needs_features else _needed(embedding)
            geo = self.d_geo.terms(place, target)
            terms["d_geo"] = geo.cap + geo.separation
            # not by a boolean index, for whose size a GPU would be waited for
            terms["positive_variance"] = torch.where(self.d_geo.positive, geo.variance, torch.nan).nanmean()
        return terms

    def forward(
        self,
        logits: Tensor,
        embedding: Tensor | None,
        target: Tensor,
        epoch: float = 0,
        teacher_logits: Tensor | None = None,
        valence_arousal: Tensor | None = None,
        features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        terms = self.components(logits, embedding, target, teacher_logits, valence_arousal, features)
        weights = self.effective_weights(epoch)
        loss = torch.stack([weights[name] * terms[name] for name in COMPONENTS if name in terms]).sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


def _needed(value: Tensor | None, what: str = "embedding") -> Tensor:
    if value is None:
        raise InputError(f"Proto-KD or D-Geo needs {what}=…: call the model with return_{what}=True and pass it on")
    return value


def _class_weights(value: Any, num_classes: int) -> Tensor | None:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = weights_of_counts(value[1], value[0])
    if value is None or (isinstance(value, Tensor) and value.shape == (num_classes,)):
        return value
    shown = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
    raise InputError(
        f"class_weights must be a tensor ({num_classes},), a rule with {num_classes} counts as in "
        f'("effective_number", counts), or None; got {shown}'
    )
