"""The card and the licence of a student, written from its run and from nothing else."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from jinja2 import UndefinedError

from ngd_timm.core.citations import BIBTEX, FACES, FORBIDDEN, eeg_credits
from ngd_timm.core.commands import shown_command
from ngd_timm.core.devices import processor_name
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import write_text
from ngd_timm.core.hub import hub_id
from ngd_timm.core.paths import as_markdown, markdown_line, without_paths
from ngd_timm.evaluate.metrics import METRIC_TITLES, prior_of, protocol_name, shown_protocols
from ngd_timm.evaluate.run import Run
from ngd_timm.evaluate.run_log import choice_note
from ngd_timm.grid.card import card_header, render_card
from ngd_timm.losses import DGeoLoss, LogitKDLoss, ProtoKDLoss
from ngd_timm.losses.cross_entropy import CITATIONS
from ngd_timm.models.calibration import CITATION as TEMPERATURE
from ngd_timm.models.logit_adjustment import CITATION
from ngd_timm.models.ngd_models import input_channels
from ngd_timm.models.student import notes_of, temperature_of
from ngd_timm.models.timm_folder import backbone_repository, published

# as the Hub knows them
_METRIC_IDS = {"acc": "accuracy", "macro_f1": "f1", "bacc": "balanced_accuracy"}
_TAGS = ["timm", "transformers", "image-classification", "facial-expression-recognition"]
_TIMED = 20  # images
EXAMPLES = ("happiness", "surprise")
"""Drawn faces that the Hub's page offers to try."""


def student_card(run: Run, repo_id: str, plot: bool = False) -> str:
    """The card of a run's student, as Markdown with a YAML header that holds its metrics in both protocols."""
    if not run.metrics:
        raise InputError(f"{run.source}: metrics.json is empty; evaluate the run first")
    try:
        for key, entry in run.metrics.items():
            if tuple(entry["per_class"]) != run.classes:
                raise InputError(
                    f"{key} is about {', '.join(entry['per_class'])}, the student about {', '.join(run.classes)}"
                )
        return _card(run, repo_id, plot)
    except InputError:
        raise
    except (KeyError, UndefinedError) as error:
        raise InputError(
            f"{run.source}: metrics.json or fingerprint.json is not complete ({error}); an older version may have "
            "written it: evaluate, or train, again"
        ) from None


def _card(run: Run, repo_id: str, plot: bool) -> str:
    recipe, faces, name = run.recipe, FACES[run.recipe.data.name], repo_id.partition("/")[2]
    distilled = recipe.loss.kd > 0 or recipe.loss.d_geo > 0 or recipe.loss.uses_grid
    others = [FACES[name] for name in (key.partition(":")[0] for key in run.metrics) if name in FACES]
    credits = dict.fromkeys([faces, *others, *eeg_credits(_grid_notes(run))])
    return render_card(
        "student_card.md",
        header=card_header(
            library_name="timm",
            pipeline_tag="image-classification",
            tags=[*_TAGS, "neurogaze-distill"] if distilled else _TAGS,
            datasets=_datasets(run),
            base_model=_base_model(run),
            metrics=list(_METRIC_IDS.values()),
            widget=[{"src": example_file(name), "example_title": f"a drawn face: {name}"} for name in EXAMPLES],
            model_name=name,
            eval_results=list(_model_index(run)),
        ),
        name=name,
        repo_id=repo_id,
        student=run.student.pretrained_cfg,
        cost=_cost(run.student),
        features=run.student.head_hidden_size,
        hyperparameters=list(_hyperparameters(run)),
        grey=input_channels(run.student) == 1,
        has_prior="prior" in notes_of(run.student),
        prior_of=prior_of,
        classes=as_markdown(list(run.classes)),
        distilled=distilled,
        recipe=recipe,
        choice_note=choice_note(recipe) if recipe.best_on else None,
        faces=faces,
        metrics=as_markdown(run.metrics),
        metric_titles=METRIC_TITLES,
        protocols=[(key, p, protocol_name(p, e)) for key, e in run.metrics.items() for p in shown_protocols(e)],
        splits=as_markdown(without_paths(run.fingerprint["data"])),
        terms=list(_terms(run)),
        command=shown_command(run.fingerprint, "ngd train recipe.yaml data.root=…").replace("```", ""),
        grid=run.grid if recipe.loss.uses_grid else None,
        notes=_grid_notes(run),
        plot=plot,
        forbidden=FORBIDDEN,
        bibtex=BIBTEX,
        citations=[credit.citation for credit in credits if credit.citation],
    )


def student_licence(run: Run, name: str) -> str:
    """The terms of a student, as the text of its LICENSE file."""
    recipe = run.recipe
    faces = FACES[recipe.data.name]
    whose = [f"model.safetensors was trained on {faces.title}. {faces.terms}"]
    if faces.citation:
        whose.append(f"Cite: {faces.citation}")
    if recipe.data.unlabelled:
        whose.append(f"Images without labels served too, with terms of their own: {', '.join(recipe.data.unlabelled)}.")
    notes = _grid_notes(run)
    if "dataset" in notes:
        whose.append(f"It was distilled from a grid of averages over EEG recordings: {notes['dataset']}.")
        whose += [f"{credit.terms} Cite: {credit.citation}" for credit in eeg_credits(notes)]
    whose.append("No image and no recording is in the model's repository.")
    return render_card(
        "student_licence.txt",
        name=name,
        whose=without_paths(" ".join(whose)),
        never=f"Use it, or a model distilled from it, {FORBIDDEN}.",
    )


def example_file(name: str) -> str:
    """The file of a drawn face, relative to the repository."""
    return f"examples/{name}.png"


def write_examples(folder: Path) -> None:
    """Draw the faces that the card's widget shows."""
    from ngd_timm.data.synthetic.schematic import draw_face

    for number, name in enumerate(EXAMPLES):
        (folder / example_file(name)).parent.mkdir(exist_ok=True)
        draw_face(name, seed=number, image_size=128).save(folder / example_file(name))


def _datasets(run: Run) -> list[str]:
    """The Hub data sets that the student was trained and scored on."""
    notes = [*run.fingerprint["data"].values(), *run.metrics.values()]
    known = [source for note in notes for source in note.get("dataset_id", "").split(", ") if source]
    return list(dict.fromkeys(source.partition("@")[0] for source in known))


def write_eval_results(run: Run, folder: Path) -> None:
    """Write the accuracies on Hub data sets as the Hub's pages of models and data sets show them."""
    for key, entry in run.metrics.items():
        if not entry.get("dataset_id"):
            continue
        dataset, _, commit = entry["dataset_id"].partition("@")
        results = [
            EvalResultEntry(
                dataset_id=dataset,
                task_id="default",
                value=round(entry[protocol]["acc"], 2),
                dataset_revision=commit,
                notes=f"accuracy in percent, {protocol_name(protocol, entry)}, {key}, labels: {entry['label_rule']}",
            )
            for protocol in shown_protocols(entry)
        ]
        text = yaml.safe_dump(eval_result_entries_to_yaml(results), sort_keys=False)
        write_text(folder / ".eval_results" / f"{key.replace(':', '-')}.yaml", text)


def _base_model(run: Run) -> str | None:
    """The Hub's name of the weights that training started from; None where they were random, or on a disk."""
    student = run.recipe.student
    if run.recipe.init is not None:
        started = hub_id(run.recipe.init)
        return None if started is None else started.repo
    if student.pretrained and (repository := backbone_repository(student.backbone)) is not None:
        return repository.repo
    source = published(student.backbone)[1] if student.pretrained and ":" not in student.backbone else None
    if source is None or not source.hf_hub_id:
        return None
    return source.hf_hub_id if not source.hf_hub_id.endswith("/") else f"timm/{source.architecture}.{source.tag}"


def _cost(model: Any) -> dict[str, str]:
    """Parameters, multiply-adds and time of one image, the last on one thread of this machine's processor."""
    from torch.utils.flop_counter import FlopCounterMode

    image, count = torch.zeros(1, *model.pretrained_cfg["input_size"]), FlopCounterMode(display=False)
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            with count:
                model(image)
            for _ in range(_TIMED):
                start = time.perf_counter()
                model(image)
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "parameters": f"{parameters / 1e6:.2f} million" if parameters >= 10_000 else str(parameters),
        "gmacs": f"{count.get_total_flops() / 2e9:.3g}",
        "ms": f"{1000 * statistics.median(seconds):.2g}",
        "processor": processor_name(),
    }


def _hyperparameters(run: Run) -> Iterator[tuple[str, str]]:
    """What the recipe sets beside the loss, in words and values."""
    optim, data, augment = run.recipe.optim, run.recipe.data, run.recipe.data.augment
    yield "optimizer", f"{optim.opt}, learning rate {optim.lr:g}, weight decay {optim.weight_decay:g}"
    yield (
        "schedule",
        f"{optim.schedule}, warm-up {optim.warmup:g}, {optim.epochs} epochs, batches of {optim.batch_size}",
    )
    yield "gradient clipping", "none" if optim.clip_grad is None else f"{optim.clip_grad:g}"
    swa = "none" if optim.swa is None else f"of the last {optim.swa:.0%} of the epochs, equally"
    yield "weight averaging", swa if optim.ema is None else f"EMA, {optim.ema:g}"
    yield "precision", markdown_line(run.fingerprint.get("precision", optim.amp))
    yield "sampling", data.sampler
    if data.label_fraction is not None:
        yield "labels", f"{data.label_fraction:g} of the training images, {data.epoch_repeats} passes an epoch"
    if data.unlabelled:
        share = f"{data.unlabelled_share:g} of a batch beside it"
        yield "images without labels", markdown_line(f"{share}, from {', '.join(data.unlabelled)}")
    yield "augmentation", ", ".join(f"{name} {value:g}" for name, value in augment.model_dump().items())
    yield "seed", str(run.recipe.seed)
    yield (
        "versions",
        markdown_line(", ".join(f"{name} {version}" for name, version in run.fingerprint.get("packages", {}).items())),
    )


def _model_index(run: Run) -> Iterator[EvalResult]:
    for key, entry in run.metrics.items():
        name, _, split = key.partition(":")
        dataset, _, commit = entry.get("dataset_id", "").partition("@")
        for protocol in shown_protocols(entry):
            for metric, label in METRIC_TITLES.items():
                yield EvalResult(
                    task_type="image-classification",
                    task_name="facial-expression recognition",
                    dataset_type=dataset or name,
                    dataset_name=FACES[name].title if name in FACES else name,
                    dataset_split=split,
                    dataset_revision=commit or None,
                    metric_type=_METRIC_IDS[metric],
                    metric_name=f"{label}, {protocol_name(protocol, entry)} (percent)",
                    metric_value=round(entry[protocol][metric], 2),
                    metric_args={
                        "protocol": protocol_name(protocol, entry),
                        "n": entry["n"],
                        "ci95": [round(bound, 2) for bound in entry["ci95"][protocol][metric]],
                        "label_rule": entry["label_rule"],
                        "prior": entry.get("prior", "training"),
                    },
                )


def _terms(run: Run) -> Iterator[tuple[str, str, str, str]]:
    """Name, weight, settings and citation of each term of the loss and of each correction of the logits."""
    loss, tau, temperature = run.recipe.loss, run.recipe.student.logit_adjustment, temperature_of(run.student)
    used = {"label_smoothing": loss.label_smoothing > 0, "effective_number": loss.class_weights == "effective_number"}
    settings = f"label_smoothing={loss.label_smoothing:g}, class_weights={loss.class_weights}"
    citations = " ".join(CITATIONS[option] for option in used if used[option])
    yield "cross-entropy", f"{loss.ce:g}", settings, citations or "–"
    if tau:
        yield "logit adjustment", "post hoc", f"tau={tau:g}", CITATION
    if temperature != 1:
        yield "temperature scaling", "post hoc", f"T={temperature:g}, fitted on validation", TEMPERATURE
    if loss.kd > 0:
        kd = LogitKDLoss(loss.kd_mode, loss.temperature)
        yield "logit KD", f"{loss.kd:g}", kd.extra_repr(), kd.citation
    if run.recipe.loss.uses_grid:
        weight = f"{loss.proto_kd:g}"
        if loss.proto_share:
            measured = last_share(run)
            weight = f"set for {100 * loss.proto_share:g} % of the gradient"
            weight += "" if measured is None else f"; {measured:.1f} % in the last epoch"
        settings = f"tau={loss.tau}, target={loss.target!r}, sigma={loss.sigma}"
        settings += ", projection='none'" * (run.recipe.student.projection == "none")
        yield "Proto-KD", weight, settings, ProtoKDLoss.citation
    if loss.d_geo > 0:
        geo = DGeoLoss(loss.positive_classes, loss.variance_cap, loss.margin, classes=run.classes)
        ramp = f"ramp={list(loss.ramp)}, positive_classes={list(loss.positive_classes)}"
        ramp += ", on the pre-logits" * (loss.d_geo_on == "features")
        yield "D-Geo", f"{loss.d_geo:g}", f"{geo.extra_repr()}, {ramp}", geo.citation


def last_share(run: Run) -> float | None:
    """Percent of the gradient that Proto-KD had in a run's last epoch; None where it is not known."""
    if "share_proto_kd" in run.fingerprint:  # of a published run, which has no summary.csv
        return float(run.fingerprint["share_proto_kd"])
    shares = [share for row in run.rows if (share := row.get("share_proto_kd")) is not None]
    return shares[-1] if shares else None


def _grid_notes(run: Run) -> dict[str, str]:
    """The metadata of the grid that the student was distilled from; none where there was no grid."""
    return as_markdown(without_paths(run.grid.metadata)) if run.grid is not None and run.recipe.loss.uses_grid else {}
