"""The teacher: a timm backbone on topographic maps, a linear embedding, valence and arousal."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from ngd_timm.core.errors import InputError


class AffectTeacher(nn.Module):
    """Regress valence and arousal from maps; the grid is built from the embedding before the last layer."""

    def __init__(self, backbone: str, in_chans: int, embedding_dim: int, image_size: int, drop_rate: float = 0.0):
        super().__init__()
        if not timm.is_model(backbone):
            near = timm.list_models(f"*{backbone.split('_')[0]}*")[:5]
            raise InputError(f"timm has no model '{backbone}'; try for example {', '.join(near) or 'resnet10t'}")
        # Any: nn.Module types every attribute as a tensor or a module.
        model: Any = timm.create_model(backbone, in_chans=in_chans, num_classes=0)
        self.backbone = model
        self.dropout = nn.Dropout(drop_rate)
        self.embedding = nn.Linear(int(model.head_hidden_size), embedding_dim)
        self.head = nn.Linear(embedding_dim, 2)
        try:
            with torch.no_grad():
                self.eval()(torch.zeros(1, in_chans, image_size, image_size))
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"'{backbone}' can't take maps of {image_size} x {image_size} ({reason})") from None
        self.train()

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, bands, H, W) to valence and arousal (B, 2) in (-1, 1) and embeddings (B, D)."""
        backbone: Any = self.backbone
        features = backbone.forward_head(backbone.forward_features(maps), pre_logits=True)
        embedding = self.embedding(self.dropout(features))
        return torch.tanh(self.head(embedding)), embedding


def ccc_loss(prediction: torch.Tensor, target: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """1 - Lin's concordance correlation (1989) over the batch of (B, K), mean over the columns."""
    mean_p, mean_t = prediction.mean(dim=0), target.mean(dim=0)
    covariance = ((prediction - mean_p) * (target - mean_t)).mean(dim=0)
    variances = prediction.var(dim=0, correction=0) + target.var(dim=0, correction=0)
    return (1 - 2 * covariance / (variances + (mean_p - mean_t) ** 2 + eps)).mean()
