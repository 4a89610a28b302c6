"""The surest wrong answers of a student, as thumbnails: shown only on request, for they are faces."""

from __future__ import annotations

from typing import Any

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import Recipe
from ngd_timm.evaluate.predictions import Predictions
from ngd_timm.report.page import png_uri

__all__ = ["MOST", "worst_mistakes"]

MOST = 60  # of a set
_SIDE = 96


def worst_mistakes(recipe: Recipe, key: str, predictions: Predictions, n: int) -> list[dict[str, Any]]:
    """The wrong answers that the student was surest of.

    Args:
        recipe: The run's; it says where the pictures are.
        key: `<name>:<split>` of metrics.json.
        predictions: Of that set.
        n: How many at most.

    Returns:
        `uri` (a thumbnail), `true`, `said` and `sure` (percent), the surest first; empty for a set that the recipe
        doesn't name (one given to `ngd evaluate`).

    Raises:
        InputError: The pictures are gone, or are not those that were scored.
    """
    dataset = _pictures(recipe, key, predictions)
    if dataset is None:
        return []
    probability = predictions.logits.double().softmax(dim=1).numpy()
    said, target = probability.argmax(axis=1), predictions.target.numpy()
    wrong = np.flatnonzero(said != target)
    sure = probability[wrong, said[wrong]]
    classes = recipe.data.classes
    return [
        {
            "uri": png_uri(_thumbnail(dataset[int(i)]["image"])),
            "true": classes[target[i]],
            "said": classes[said[i]],
            "sure": 100 * probability[i, said[i]],
        }
        for i in wrong[np.argsort(-sure, kind="stable")][:n]
    ]


def _pictures(recipe: Recipe, key: str, predictions: Predictions) -> Any:
    from ngd_timm.data import load_split, parse_spec

    data = recipe.data
    source: tuple[str, str, str | None] | None = None
    if key == f"{data.name}:valid" and data.root is not None:
        source = (data.name, data.root, "valid")
    for name, root in recipe.eval.items():
        spec = parse_spec(f"{name}={root}")
        if spec[3] == key:
            source = spec[:3]
    if source is None:
        return None
    name, root, split = source
    dataset, report = load_split(
        name,
        root,
        split or "all",
        label_rule=predictions.label_rule,
        drop_duplicates=data.drop_duplicates,
        classes=data.classes,
        limit=data.limit if key == f"{data.name}:valid" else None,
    )
    if report.sha256 != predictions.data_sha256:
        raise InputError(
            f"the pictures of {key} at {root} are not those that the run was scored on, so its mistakes can't be "
            "shown; evaluate the run again"
        )
    return dataset


def _thumbnail(image: Any) -> Any:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    return small
