"""The objective as a timm training task, so that timm's own loops, EMA and checkpoints work with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from ngd_timm.losses import COMPONENTS, NeuroGazeLoss
from ngd_timm.models.kd_teacher import KDTeacher, TeacherEnsemble, open_teacher
from ngd_timm.models.ngd_models import DistillationWrapper, TimmModel, batch_norm_statistics_kept, normalisation


class NeuroGazeTask(TrainingTask):
    """timm task of the whole objective: `task.set_epoch(e)`, then `task(images, target)["loss"]`.

    The wrapper trains; the bare student is evaluated and checkpointed, under its timm keys. The projection and the
    epoch are the separate task state.

    Args:
        model: A `DistillationWrapper`.
        criterion: The objective.
        teacher: For logit KD: a timm classifier with label names, a run directory, a bundled student by version, a Hub
            id, a list of them (an ensemble), or a `KDTeacher`. It takes the student's images, normalised anew from the
            input that `model.student.pretrained_cfg` describes: see `set_input`.
        device: By default the model's; the criterion and the teacher are moved there.
        dtype, verbose: As timm's tasks.

    Examples:
        >>> from ngd_timm import NeuroGazeLoss, PrototypeGrid, wrap
        >>> grid = PrototypeGrid.random(64)
        >>> task = NeuroGazeTask(wrap("resnet10t", grid=grid), NeuroGazeLoss(grid, epochs=10), verbose=False)
        >>> task.set_epoch(3)
        >>> result = task(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
        >>> result["loss"].requires_grad, tuple(result["output"].shape)
        (True, (2, 8))
    """

    def __init__(
        self,
        model: DistillationWrapper,
        criterion: NeuroGazeLoss,
        teacher: str | Path | TimmModel | Sequence[str | Path | TimmModel] | KDTeacher | TeacherEnsemble | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        device = next(model.parameters()).device if device is None else device
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        if teacher is not None and not isinstance(teacher, (KDTeacher, TeacherEnsemble)):
            teacher = open_teacher(teacher, criterion.classes, *normalisation(model.student))
        self.trainable_module: Any = model
        self.criterion = criterion.to(self.device)
        self.teacher = None if teacher is None else teacher.to(self.device)
        self.epoch: float = 0

    def set_epoch(self, epoch: float) -> None:
        """Set the epoch, which D-Geo's ramp depends on."""
        self.epoch = epoch

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> NeuroGazeTask:
        """Train with other ranks by DistributedDataParallel, on the losses of the joined batch."""
        from torch.nn.parallel import DistributedDataParallel

        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        self.criterion.gather_distributed = True
        return self

    def compile(  # type: ignore[override]
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module:
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        return self.trainable_module

    def get_clip_parameters(self, exclude_head: bool = False) -> Any:
        """Parameters whose gradients are clipped; without the classifier's and the projection's for `exclude_head`.

        timm drops the last two of the list there, which for its own models are the classifier's.
        """
        wrapper = self._wrapper()
        parts = (wrapper.get_classifier(), wrapper.projection) if exclude_head else ()
        heads = {id(p) for part in parts if part is not None for p in _parameters(part)}
        return [p for p in wrapper.parameters() if id(p) not in heads]

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        module = self.get_trainable_module(ema=ema) if module is None else module
        return None if module is None else unwrap_model(module).student

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        projection = self._wrapper(module, ema).projection
        return {"epoch": self.epoch, "projection": None if projection is None else projection.state_dict()}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        if state is None:
            return
        self.epoch = state["epoch"]
        projection = self._wrapper(module, ema).projection
        if projection is not None:
            projection.load_state_dict(state["projection"], strict=strict)

    def _wrapper(self, module: nn.Module | None = None, ema: bool = False) -> DistillationWrapper:
        return unwrap_model(self.get_trainable_module(ema=ema) if module is None else module)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        valence_arousal: Tensor | None = None,
        teacher_logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses of one step.

        Args:
            input: (B, C, H, W).
            target: (B,) indices or (B, num_classes) weights.
            valence_arousal: (B, 2) where the data set has them.
            teacher_logits: (B, num_classes); by default the task's own teacher is queried, if it has one.

        Returns:
            "loss", "output" (the logits) and each component.
        """
        features = None
        if self.criterion.needs_features:
            logits, embedding, features = self.trainable_module(input, return_features=True)
        else:
            logits, embedding = self.trainable_module(input, return_embedding=True)
        teacher_logits = self._teacher_logits(input, teacher_logits)
        losses = self.criterion(logits, embedding, target, self.epoch, teacher_logits, valence_arousal, features)
        return {**losses, "output": logits}

    def _teacher_logits(self, input: Tensor, logits: Tensor | None) -> Tensor | None:
        return self.teacher(input) if logits is None and self.teacher is not None else logits

    def gradient_norms(
        self,
        input: Tensor,
        target: Tensor,
        valence_arousal: Tensor | None = None,
        teacher_logits: Tensor | None = None,
    ) -> dict[str, float]:
        """Norm of each unweighted component's gradient at the backbone's features, where CE and embedding terms meet.

        A pass of its own that leaves weights, batch-norm statistics and random numbers as they were, with the arguments
        of `forward`. Where the criterion communicates, the norms are of the joined batch, and every rank must call it.
        """
        wrapper = self._wrapper()
        devices = [input.device] if input.device.type == "cuda" else []
        with torch.random.fork_rng(devices), batch_norm_statistics_kept(wrapper.modules()):
            with torch.no_grad():
                features = wrapper.student.forward_features(input)
            torch.clear_autocast_cache()  # some releases of torch would train with these casts, which have no gradient
            several = isinstance(features, (list, tuple))
            leaves = [f.detach().requires_grad_() for f in (features if several else [features])]
            logits, embedding, pooled = wrapper.heads(type(features)(leaves) if several else leaves[0])
            teacher_logits = self._teacher_logits(input, teacher_logits)
            terms = self.criterion.components(logits, embedding, target, teacher_logits, valence_arousal, pooled)
            # float16 would round the gradient of a single feature to zero
            scale = 2.0**14 if any(leaf.dtype == torch.float16 for leaf in leaves) else 1.0
            return {name: self._norm(scale * terms[name], leaves) / scale for name in COMPONENTS if name in terms}

    def _norm(self, term: Tensor, leaves: Sequence[Tensor]) -> float:
        gradients = torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True)
        squares = [g.double().square().sum() for g in gradients if g is not None]
        total = sum(squares, torch.zeros((), dtype=torch.float64, device=term.device))
        # each process has its rows' gradient of its own loss, of which the joint loss is the mean
        processes = dist.get_world_size() if self.criterion.communicates else 1
        if processes > 1:
            dist.all_reduce(total)
        return float(total) ** 0.5 / processes

    def gradient_shares(self, norms: dict[str, float]) -> dict[str, float]:
        """Each component's part of the summed norms, in percent, as weighted at the present epoch."""
        weights = self.criterion.effective_weights(self.epoch)
        weighted = {name: weights[name] * norm for name, norm in norms.items()}
        total = sum(weighted.values())
        return {name: 100 * value / total if total > 0 else 0.0 for name, value in weighted.items()}


def _parameters(part: Any) -> list[nn.Parameter]:
    """Of a module, or of the several classifiers of a model with two heads."""
    return list(part.parameters()) if isinstance(part, nn.Module) else [p for m in part for p in m.parameters()]
