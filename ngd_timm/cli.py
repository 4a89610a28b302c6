"""The `ngd` command. Each subcommand only reads its arguments and calls one function of the library."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ngd_timm.core.ending import BREAKS, Terminal, leave_with, one_line_errors, start_logging
from ngd_timm.core.errors import InputError, choices, printable
from ngd_timm.core.paths import last_part
from ngd_timm.core.version import __version__
from ngd_timm.train.interruption import Stopped

__all__ = ["app", "main"]

app = typer.Typer(
    name="ngd",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
# an option, in its group in --help
INPUT, OUTPUT, TRAINING, HUB, ADVANCED, GRID, SIMULATION = (
    partial(typer.Option, rich_help_panel=group)
    for group in ("Input", "Output", "Training", "Hub", "Advanced", "Grid", "Simulation")
)

teacher_app = typer.Typer(help="The EEG teacher.", no_args_is_help=True)
prototypes_app = typer.Typer(help="The prototype grid.", no_args_is_help=True)
data_app = typer.Typer(help="Sets of faces.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel="Train and score")
app.add_typer(teacher_app, name="teacher", rich_help_panel="From EEG to a grid")
app.add_typer(prototypes_app, name="prototypes", rich_help_panel="From EEG to a grid")

StudentSource = Annotated[str, typer.Argument(help="A run directory, a student folder, or user/repo on the Hub.")]
DataSets = Annotated[
    list[str], INPUT("--data", metavar="NAME=ROOT[:SPLIT]", help="Without :SPLIT all rows; repeatable.")
]
LabelRule = Annotated[str | None, INPUT(help="majority, argmax or votes; default: as the run.")]
Flip = Annotated[bool | None, ADVANCED("--flip/--no-flip", help="Average with the mirror image.")]
KeepDuplicates = Annotated[bool, INPUT("--keep-duplicates", help="Keep duplicates of training images.")]
RecipeName = Annotated[str | None, typer.Argument(help="The name of a bundled recipe, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe to change.")]
RepoId = Annotated[str, typer.Argument(metavar="USER/REPO", help="The repository on the Hub; made if it is missing.")]
Private = Annotated[bool | None, HUB("--private/--public", help="Of a repository that is made now.")]
Branch = Annotated[str | None, HUB("--revision", help="A branch, made if it is missing; default: main.")]
Message = Annotated[str | None, HUB("--message", help="Title of the commit.")]
CreatePr = Annotated[bool, HUB("--create-pr", help="Open a pull request instead of committing.")]
DryRun = Annotated[bool, OUTPUT("--dry-run", help="Only list what would go up.")]
Folder = Annotated[Path | None, OUTPUT(help="Write what would go up into this new folder, and push nothing.")]
Grey = Annotated[bool, OUTPUT("--grey", help="Leave a grey student its one channel; else it takes RGB.")]
AsJson = Annotated[bool, OUTPUT("--json", help="Print JSON for a program to read.")]


def _say(what: object) -> None:
    typer.echo(printable(what, BREAKS))


def _json(value: object) -> str:
    return json.dumps(value, indent=2, allow_nan=False)


def _command() -> list[str]:
    """The command line of this process, as a run keeps it."""
    return ["ngd", *sys.argv[1:]]


def _version(print_it: bool) -> None:
    if print_it:
        _say(f"ngd-timm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """NeuroGaze-Distill for timm: from EEG to a frozen valence/arousal grid, from faces to a plain timm model."""


@app.command(epilog="Example: ngd demo --out ngd_demo", rich_help_panel="Start")
def demo(
    out: Annotated[Path, OUTPUT(help="A new or empty folder.")] = Path("ngd_demo"),
    seed: Annotated[int, ADVANCED(min=0, help="Of everything random.")] = 0,
) -> None:
    """Run the whole flow on simulated EEG and drawn faces: minutes on two cores, no data, no network."""
    from ngd_timm.experiments.demo import run_demo

    _say(f"open {run_demo(out, seed=seed)}")


@app.command(
    epilog="Example: ngd train b0_ce data.root=ferplus/ optim.epochs=12; then ngd train --resume runs/b0_ce-0",
    rich_help_panel="Train and score",
)
def train(
    recipe: RecipeName = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, TRAINING(help="A run directory to continue instead.")] = None,
) -> None:
    """Train a student by a recipe into a run directory."""
    from ngd_timm.core.distributed import is_first, leave
    from ngd_timm.core.recipe import Recipe, load_recipe, recipe_names

    if (recipe is None) == (resume is None):
        raise InputError(f"give one recipe, or --resume RUN. Recipes: {', '.join(recipe_names())}")
    from ngd_timm.report import try_page
    from ngd_timm.train import loop

    if resume is not None:
        run = loop.resume(resume, _command())
    elif recipe is not None:
        run = loop.train(load_recipe(Recipe, recipe, overrides or []), _command())
    drawn = not is_first() or try_page(run)
    if is_first():
        _say(run)
    leave()
    raise typer.Exit(0 if drawn else 1)


@app.command(
    epilog="Example: ngd evaluate runs/b0_ce-0 --data ferplus=ferplus/:test --data ckplus=ckplus/",
    rich_help_panel="Train and score",
)
def evaluate(
    student: StudentSource,
    data: DataSets,
    out: Annotated[Path | None, OUTPUT(help="Write the metrics here, in metrics.json's form.")] = None,
    label_rule: LabelRule = None,
    flip: Flip = None,
    keep_duplicates: KeepDuplicates = False,
    prior: Annotated[
        str, ADVANCED(metavar="training|uniform|CLASS=P,...", help="Class prior of the predictions.")
    ] = "training",
    against: Annotated[
        str | None, INPUT(metavar="STUDENT", help="Another one, scored alike: adds the paired differences to it.")
    ] = None,
    temperature: Annotated[
        float, ADVANCED(help="Of the softmax, for the calibration error, valence and arousal.")
    ] = 1.0,
    predictions: Annotated[
        bool, OUTPUT("--predictions", help="Keep logits and embeddings in the run's predictions/.")
    ] = False,
    form: Annotated[str, OUTPUT("--format", help="text, markdown, latex or json.")] = "text",
    as_json: AsJson = False,
) -> None:
    """Score a student on any number of data sets, 8-way and present-only, with 95 % intervals."""
    from ngd_timm.evaluate.student import evaluate as evaluate_student
    from ngd_timm.evaluate.student import summary_line
    from ngd_timm.models.logit_adjustment import parse_prior
    from ngd_timm.report.figures import write_confusions
    from ngd_timm.report.tables import FORMATS, score_table

    form = "json" if as_json else form
    if form not in FORMATS:
        raise choices("format", form, FORMATS)
    results = evaluate_student(
        student,
        data,
        out,
        temperature=temperature,
        predictions=predictions,
        label_rule=label_rule,
        drop_duplicates=False if keep_duplicates else None,
        flip=flip,
        prior=parse_prior(prior),
        against=against,
    )
    if form == "json":
        _say(_json(results))
    elif form == "text":
        for key, entry in results.items():
            _say(summary_line(key, entry))
    else:
        table = score_table(last_part(student), results)
        _say(table.markdown() if form == "markdown" else table.latex())
    if prior == "training" and (Path(student) / "summary.csv").is_file() and os.access(student, os.W_OK):
        write_confusions(results, student)  # a run's own folder, not one that was published


@app.command(
    epilog="Example: ngd robustness runs/b0_ce-* runs/b3_full-* --data ferplus=ferplus/:test --out robustness",
    rich_help_panel="Train and score",
)
def robustness(
    students: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDENT...",
            help="As in ngd evaluate; runs of one recipe are its seeds, and the first recipe is the reference.",
        ),
    ],
    data: Annotated[str, INPUT(metavar="NAME=ROOT[:SPLIT]", help="The images to corrupt; without :SPLIT all rows.")],
    out: Annotated[Path, OUTPUT(help="robustness.json, table.md and robustness.png go here.")],
    severities: Annotated[str, INPUT(metavar="1,2,...", help="Which of 1 to 5, with commas.")] = "1,2,3,4,5",
    label_rule: LabelRule = None,
    flip: Flip = None,
    amp: Annotated[str, ADVANCED(help="Precision: off (float32), bf16, fp16 or auto.")] = "off",
    keep_duplicates: KeepDuplicates = False,
    seed: Annotated[int, ADVANCED(min=0, help="Of the corruptions and of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score students under fifteen common corruptions of the same images, with paired differences."""
    from ngd_timm.experiments.robustness import robustness as score

    try:
        levels = [int(level) for level in severities.split(",")]
    except ValueError:
        raise InputError(f"--severities takes whole numbers with commas, such as 1,3,5; got '{severities}'") from None
    results, tables = score(
        students,
        data,
        out,
        severities=levels,
        label_rule=label_rule,
        drop_duplicates=False if keep_duplicates else None,
        flip=flip,
        amp=amp,
        seed=seed,
    )
    _say(_json(results) if as_json else "\n\n".join(table.text() for table in tables))


@app.command(
    epilog="Example: ngd ablate b0_ce b1_kd b2_proto b3_full data.root=ferplus/ --seeds 3 --out ablation",
    rich_help_panel="Train and score",
)
def ablate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...",
            help="Recipes, the first is the reference; keys to change in all of them, or in one: RECIPE:KEY=VALUE.",
        ),
    ],
    out: Annotated[Path, OUTPUT(help="Runs, ablation.json, table.md, table.tex and ablation.png go here.")],
    seeds: Annotated[int, TRAINING(min=1, help="How many, each trained by every recipe.")] = 3,
    warm_start: Annotated[int | None, TRAINING(min=1, help="Epochs of cross-entropy that all start from.")] = None,
    sweeps: Annotated[
        list[str] | None,
        TRAINING(
            "--set",
            metavar="[RECIPE:]KEY=VALUE,VALUE...",
            help="A row for each value, and for each combination of several --set; repeatable.",
        ),
    ] = None,
    choose: Annotated[
        str | None,
        OUTPUT(
            metavar="METRIC=SET,SET...",
            help="Also print the row with the best mean METRIC (acc, macro_f1, bacc) over sets of eval, present-only.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train several recipes on several seeds and print means and paired differences; run again, it goes on."""
    from ngd_timm.experiments.ablation import ablate as run_ablation

    tables = run_ablation(arguments, seeds, out, warm_start, _command(), sweeps or (), choose)
    results = json.loads((out / "ablation.json").read_text(encoding="utf-8"))
    _say(_json(results) if as_json else "\n\n".join(table.text() for table in tables))


@app.command(
    epilog="Example: ngd export runs/b3_full-0 --format onnx --out student.onnx", rich_help_panel="Publish and deploy"
)
def export(
    student: StudentSource,
    out: Annotated[Path, OUTPUT(help="The file to write; for timm and transformersjs a new folder.")],
    form: Annotated[str, OUTPUT("--format", help="timm, onnx, pt2 (torch.export) or transformersjs.")] = "timm",
    grey: Grey = False,
    input_name: Annotated[str | None, OUTPUT(help="Of an ONNX file's input; default: images.")] = None,
    quantize: Annotated[
        str | None,
        OUTPUT(
            metavar="NAME=ROOT[:SPLIT]",
            help="ONNX in int8, calibrated on 256 of these images; others, at most 5,000 in all, show what it costs.",
        ),
    ] = None,
) -> None:
    """Write a student for deployment without this package; checked against PyTorch before it gets its name."""
    from ngd_timm.publish.export import export_student

    _say(export_student(student, form, out, grey=grey, input_name=input_name, quantize=quantize))


@app.command(
    "import-checkpoint",
    epilog="Example: ngd import-checkpoint student_best.ckpt --backbone resnet18 --classes map.json --out student",
    rich_help_panel="Publish and deploy",
)
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="What torch.save wrote; nothing but tensors is unpickled.")],
    backbone: Annotated[str, INPUT(help="The timm name of what it holds.")],
    out: Annotated[Path, OUTPUT(help="A new folder for the student.")],
    classes: Annotated[
        str | None,
        INPUT(metavar="A,B,...|JSON", help="The order of its logits: names, or a class map; default: FER+'s."),
    ] = None,
    size: Annotated[int, INPUT(min=16, max=1024, help="Of its images, px.")] = 224,
    channels: Annotated[int, INPUT(help="Of its images, 1 or 3.")] = 3,
    mean: Annotated[
        list[float] | None, INPUT(help="Of pixels in [0, 1], once or once a channel; default: timm's.")
    ] = None,
    std: Annotated[list[float] | None, INPUT(help="As --mean.")] = None,
    key: Annotated[str | None, INPUT(help="Where its weights are, such as model_ema; default: looked for.")] = None,
) -> None:
    """Write a student from somebody else's checkpoint, and print what was found and assumed."""
    from ngd_timm.data.class_map import logit_classes
    from ngd_timm.models import imported

    if channels not in (1, 3):
        raise choices("number of channels", channels, (1, 3))
    names = logit_classes(classes)
    lines = imported.import_checkpoint(file, backbone, out, names, size, channels, mean, std, key)
    _say("\n  ".join([str(out), *lines]))


@app.command(
    epilog="Example: ngd predict photo.jpg; or: ngd predict runs/b3_full-0 photos/ --json --annotate drawn/",
    rich_help_panel="Start",
)
def predict(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[STUDENT] IMAGE...",
            help="A run directory, a student folder or user/repo on the Hub; default: the bundled student. Then "
            "photographs, folders of them, or one video.",
        ),
    ],
    crops: Annotated[bool, INPUT("--crops", help="Each image is cropped to one face.")] = False,
    small_faces: Annotated[bool, INPUT("--small-faces", help="Look at every image at full size too.")] = False,
    prior: Annotated[
        str | None,
        INPUT(
            metavar="training|uniform|CLASS=P,...",
            help="Class prior of the predictions; default: uniform where the student records its training prior.",
        ),
    ] = None,
    views: Annotated[
        int, ADVANCED(help="2 averages with the mirror image, 6 also over three crops of a found face.")
    ] = 1,
    threshold: Annotated[float, ADVANCED(min=0, max=1, help="Of a face's score.")] = 0.6,
    annotate: Annotated[
        Path | None, OUTPUT(help="A new folder for the images with their predictions; of a video the MP4 file.")
    ] = None,
    save_faces: Annotated[Path | None, OUTPUT(help="A new folder for the crop of every face, to train on.")] = None,
    out: Annotated[Path | None, OUTPUT(help="Of a video: a new folder for faces.csv and its plot.")] = None,
    fps: Annotated[float, INPUT(help="Of a video: frames a second that are looked at.")] = 5.0,
    as_csv: Annotated[bool, OUTPUT("--csv", help="Print CSV, a row for each face.")] = False,
    device: Annotated[str, ADVANCED(help="auto, cpu or cuda.")] = "auto",
    max_megapixels: Annotated[float, ADVANCED(help="Open images of up to so many megapixels, beyond 100.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Find the faces in photographs and predict the expression of each."""
    from ngd_timm.models.logit_adjustment import parse_prior
    from ngd_timm.predict.command import predict_files

    if as_csv and as_json:
        raise InputError("--csv and --json exclude each other; give one of them")
    form = "csv" if as_csv else "json" if as_json else "text"
    failed = predict_files(
        arguments,
        Terminal(sys.stdout),
        form=form,
        crops=crops,
        small_faces=small_faces,
        threshold=threshold,
        annotate=annotate,
        save_faces=save_faces,
        out_folder=out,
        fps=fps,
        device=device,
        max_megapixels=max_megapixels,
        prior=None if prior is None else parse_prior(prior),
        views=views,
    )
    if failed:
        raise typer.Exit(1)


@app.command(
    epilog="Example: ngd push runs/b3_full-0 user/my-student --metrics test.json --dry-run",
    rich_help_panel="Publish and deploy",
)
def push(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    repo: RepoId,
    metrics: Annotated[list[Path] | None, INPUT(help="More for the card, from ngd evaluate --out.")] = None,
    private: Private = None,
    revision: Branch = None,
    message: Message = None,
    create_pr: CreatePr = False,
    grey: Grey = False,
    onnx: Annotated[bool, HUB("--onnx", help="Also publish USER/REPO-ONNX, for transformers.js.")] = False,
    dry_run: DryRun = False,
    folder: Folder = None,
) -> None:
    """Publish a run's student on the Hugging Face Hub, with card, licence, recipe, fingerprint and metrics."""
    from ngd_timm.core.files import require_new_folder
    from ngd_timm.evaluate.run import load_run, read_metrics
    from ngd_timm.publish.push import onnx_repo, stage_onnx, stage_run

    opened = load_run(run)
    more = read_metrics(metrics or [], opened)
    options = {"private": private, "revision": revision, "commit_message": message, "create_pr": create_pr}
    beside = None if folder is None else folder.with_name(onnx_repo(folder.name))
    with tempfile.TemporaryDirectory() as made:
        if onnx:  # first: it may be refused, and then nothing is published
            if beside is not None:
                require_new_folder(beside, "--folder")
            stage_onnx(opened, Path(made), repo)
        _push(repo, lambda at: stage_run(opened, at, repo, more, grey), dry_run, folder, options)
        if onnx:
            _push(onnx_repo(repo), partial(shutil.copytree, made, dirs_exist_ok=True), dry_run, beside, options)


@app.command(epilog="Example: ngd publish --dry-run", rich_help_panel="Publish and deploy")
def publish(
    namespace: Annotated[str | None, HUB(help="Whose repositories; default: pyproject.toml's Hub.")] = None,
    private: Private = None,
    dry_run: DryRun = False,
) -> None:
    """Publish everything in hub/, each under its own name: the versions of the grid and of the student, the Spaces."""
    from ngd_timm.publish.push import namespace as own_namespace
    from ngd_timm.publish.push import packaged_artifacts, packaged_spaces

    name = namespace or own_namespace()
    for repo, stage in packaged_artifacts(name).items():
        _push(repo, stage, dry_run, None, {"private": private})
    for repo, (sdk, stage) in packaged_spaces(name).items():
        _push(repo, stage, dry_run, None, {"private": private, "space_sdk": sdk})


def _push(
    repo: str,
    stage: Callable[[Path], object],
    dry_run: bool,
    folder: Path | None,
    options: dict[str, Any],
    note: str = "",
) -> None:
    """Push what `stage` writes, or keep it in a folder, or only list it."""
    from ngd_timm.core.files import atomic_folder, require_new_folder, sha256_file
    from ngd_timm.core.hub import upload

    if folder is not None and dry_run:
        raise InputError("--folder writes the files that --dry-run only lists; give one of the two")
    if folder is not None:
        require_new_folder(folder, "--folder")
        with atomic_folder(folder) as temporary:
            stage(temporary)
        _say(f"{folder} holds what would go to {repo}")
    elif dry_run:
        with tempfile.TemporaryDirectory() as name:
            stage(Path(name))
            kind = "the Space " if "space_sdk" in options else ""
            _say(f"{kind}{repo} would get:")
            for file in sorted(path for path in Path(name).rglob("*") if path.is_file()):
                shown = file.relative_to(name).as_posix()
                _say(f"  {file.stat().st_size:>10,} bytes  sha256 {sha256_file(file)}  {shown}")
    else:
        done = upload(stage, repo, **options)
        _say(done.url if "space_sdk" in options else f"{done.url}\nhf-hub:{done.repo}@{done.commit}{note}")


@app.command(
    epilog="Example: ngd results ablation --data ferplus=ferplus/:test --out RESULTS.md",
    rich_help_panel="Train and score",
)
def results(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="ABLATION|RUN...", help="The folder that ngd ablate filled, or finished runs."),
    ],
    data: DataSets,
    out: Annotated[Path, OUTPUT(help="The page, Markdown; its scores go beside it as .json.")],
    label_rule: Annotated[list[str] | None, INPUT(help="Repeatable; default: majority and argmax.")] = None,
    beside: Annotated[list[Path] | None, INPUT(metavar="RUN", help="A run beside the table; repeatable.")] = None,
    best: Annotated[bool, INPUT("--best", help="Beside the last epoch, the one that validation chose.")] = False,
) -> None:
    """Score runs on any data sets by any label rules, and write a page: beside the paper, with what each term adds."""
    from ngd_timm.experiments.results import check_out, score_ablation, write_results

    check_out(out)
    rules = label_rule or ("majority", "argmax")
    scored = score_ablation(sources, data, rules, beside or (), command=_command(), best=best)
    write_results(scored, out)
    _say(out)


@app.command(epilog="Example: ngd report runs/b3_full-0 --mistakes 12", rich_help_panel="Train and score")
def report(
    folder: Annotated[Path, typer.Argument(help="A finished run directory, a teacher's, or an ablation's.")],
    mistakes: Annotated[int, OUTPUT(min=0, help="Show the faces of so many wrong predictions.")] = 0,
) -> None:
    """Write report.html again, from the files that are there."""
    from ngd_timm.report import write_page

    _say(write_page(folder, mistakes))


@data_app.command(
    "subset", epilog="Example: ngd data subset affectnet=AffectNet:valid --per-class 100 --out affectnet-mini.txt"
)
def data_subset(
    data: Annotated[str, typer.Argument(metavar="NAME=ROOT[:SPLIT]", help="Without :SPLIT every split.")],
    per_class: Annotated[int, INPUT(min=1, help="Images of each class in each split.")],
    out: Annotated[Path, OUTPUT(help="The list; its sha256 goes beside it.")],
    seed: Annotated[int, INPUT(min=0, help="Hashed with each file's name.")] = 0,
) -> None:
    """Draw a part of a data set by hashes of file names, and write it as a list for NAME=ROOT,list=FILE."""
    from ngd_timm.data import parse_spec, write_subset

    name, root, split, _ = parse_spec(data)
    _say("\n".join([str(out), *(f"  {line}" for line in write_subset(name, root, out, per_class, seed, split))]))


@teacher_app.command("fit", epilog="Example: ngd teacher fit teacher_gameemo data.root=gameemo_bandpower.npz")
def teacher_fit(
    recipe: Annotated[str, typer.Argument(help="The name of a bundled teacher recipe, or a YAML file.")],
    overrides: Overrides = None,
) -> None:
    """Fit an EEG teacher, a fold of subjects held out at a time, into a teacher run."""
    from ngd_timm.core.recipe import load_recipe
    from ngd_timm.core.teacher_recipe import TeacherRecipe
    from ngd_timm.eeg.teacher.fit import fit_teacher
    from ngd_timm.report import try_page

    run = fit_teacher(load_recipe(TeacherRecipe, recipe, overrides or []), command=_command())
    drawn = try_page(run)
    _say(run)
    raise typer.Exit(0 if drawn else 1)


@teacher_app.command("simulate", epilog="Example: ngd teacher simulate dreamer DREAMER.mat --subjects 16")
def teacher_simulate(
    layout: Annotated[str, typer.Argument(help="Whose: dreamer, mahnob, deap, gameemo, faced, dens, ds002721.")],
    out: Annotated[Path, typer.Argument(help="The file (dreamer) or folder to write; it must not exist.")],
    subjects: Annotated[int, SIMULATION(min=1, help="How many.")] = 16,
    trials: Annotated[int | None, SIMULATION(min=1, help="Per subject; default: as in the real data set.")] = None,
    seconds: Annotated[float | None, SIMULATION(min=1, help="Per trial; default: 60, FACED 30, ds002721 12.")] = None,
    effect: Annotated[float, SIMULATION(min=0, help="Of valence and arousal on alpha and beta; 0: none.")] = 1.0,
    shuffled: Annotated[
        bool, SIMULATION("--shuffled", help="Permute each subject's ratings: nothing left to find.")
    ] = False,
    seed: Annotated[int, ADVANCED(min=0, help="Of everything random.")] = 0,
) -> None:
    """Write simulated EEG in a data set's layout, to try the flow before the data come."""
    from ngd_timm.eeg.simulate.sets import write_simulated

    write_simulated(layout, out, subjects, trials, seconds, effect, shuffled, seed)
    _say(out)


@prototypes_app.command("build", epilog="Example: ngd prototypes build runs/teacher_gameemo-0 --out grid.safetensors")
def prototypes_build(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="TEACHER_RUN...",
            help="A teacher run; several, of different recordings, are pooled. Or one CSV of embeddings.",
        ),
    ],
    out: Annotated[Path, OUTPUT(help="The grid's file.")],
    size: Annotated[int, GRID(min=2, max=15, help="Cells a side.")] = 5,
    min_subjects: Annotated[int, GRID(min=1, help="Cells of fewer subjects count as empty.")] = 1,
    center: Annotated[bool, GRID("--center", help="Subtract the grand mean.")] = False,
    scored: Annotated[
        list[Path] | None,
        OUTPUT(
            metavar="TEACHER_RUN",
            help="A teacher of the same recordings in other folds, whose scores go to the card; repeatable.",
        ),
    ] = None,
    card: Annotated[Path | None, OUTPUT(help="Also write the grid's card here, with its figure.")] = None,
) -> None:
    """Average the held-out embeddings of a teacher, or of several, or the rows of a CSV into a frozen grid."""
    from ngd_timm.core.files import check_outputs, write_text
    from ngd_timm.eeg.teacher.consolidate import add_scores, build_grid
    from ngd_timm.grid.card import describe, grid_card

    check_outputs([out] if card is None else [out, card, card.with_name("grid.png")], runs)
    if tables := [run for run in runs if run.suffix.lower() == ".csv"]:
        from ngd_timm.grid.table import grid_of_table

        if len(runs) > 1:
            raise InputError(f"{tables[0]} is a table of embeddings; build its grid alone")
        grid = grid_of_table(tables[0], size=size, center=center, min_subjects=min_subjects)
    else:
        grid = build_grid(runs, size=size, center=center, min_subjects=min_subjects)
    if scored:
        grid = add_scores(grid, scored)
    text = None if card is None else grid_card(grid, out.stem)  # refused before anything is written
    grid.save(out)
    if card is not None and text is not None:
        write_text(card, text)
        grid.plot(card.with_name("grid.png"))
    _say(describe(grid, str(out)))


@prototypes_app.command(
    "import", epilog="Example: ngd prototypes import prototypes_5x5.npz --order valence-major --out grid.safetensors"
)
def prototypes_import(
    file: Annotated[Path, typer.Argument(help="An NPZ of plain arrays, or a torch file of tensors.")],
    out: Annotated[Path, OUTPUT(help="The grid's file.")],
    prototypes: Annotated[str, INPUT(metavar="KEY", help="Its entry of (S*S, D) or (S, S, D).")] = "prototypes",
    counts: Annotated[str, INPUT(metavar="KEY", help="Its entry of (S*S,) or (S, S), if any.")] = "counts",
    order: Annotated[
        str | None,
        INPUT(
            help="valence-major (row = i_valence * S + i_arousal, as here) or arousal-major; default: as its entry "
            "'order' says."
        ),
    ] = None,
) -> None:
    """Write somebody else's prototypes as a grid file, with what was assumed in its metadata."""
    from ngd_timm.core.files import check_outputs
    from ngd_timm.grid.card import describe
    from ngd_timm.grid.imported import import_grid

    check_outputs([out], [file])
    grid = import_grid(file, prototypes, counts, order)
    grid.save(out)
    _say(describe(grid, str(out)))


@prototypes_app.command("validate", epilog="Example: ngd prototypes validate user/my-grid")
def prototypes_validate(
    grid: Annotated[str, typer.Argument(help="A file, a Hub id (user/repo[@revision]) or a bundled version.")],
    as_json: AsJson = False,
) -> None:
    """Check a grid's tensors, hashes and metadata against the published format, and say what is in it."""
    from ngd_timm.grid.metadata import FORMAT_VERSION
    from ngd_timm.grid.prototypes import PrototypeGrid
    from ngd_timm.grid.push import unfit_to_publish

    opened = PrototypeGrid.from_spec(grid)
    found = {
        "format_version": FORMAT_VERSION,
        "size": opened.size,
        "dim": opened.dim,
        "filled": opened.filled,
        "sha256": opened.sha256,
        "not_fit_to_publish": unfit_to_publish(opened),
    }
    text = (
        f"{grid}: a valid grid, format version {FORMAT_VERSION}: {opened.size}x{opened.size} prototypes of "
        f"{opened.dim} values, {opened.filled} cells filled, sha256 {opened.sha256}"
    )
    if reason := found["not_fit_to_publish"]:
        text += f"\nnot fit to publish: {reason}"
    _say(_json(found) if as_json else text)


@prototypes_app.command("push", epilog="Example: ngd prototypes push grid.safetensors user/my-grid --private")
def prototypes_push(
    grid: Annotated[str, typer.Argument(help="A file or a bundled version.")],
    repo: RepoId,
    private: Private = None,
    revision: Branch = None,
    message: Message = None,
    create_pr: CreatePr = False,
    dry_run: DryRun = False,
    folder: Folder = None,
) -> None:
    """Publish a grid on the Hugging Face Hub, with its card, its licence and its figure."""
    from ngd_timm.grid.prototypes import PrototypeGrid
    from ngd_timm.grid.push import stage_grid

    opened = PrototypeGrid.from_spec(grid)
    options = {"private": private, "revision": revision, "commit_message": message, "create_pr": create_pr}
    note = f", sha256 of the grid {opened.sha256}"
    _push(repo, lambda at: stage_grid(opened, at, repo), dry_run, folder, options, note)


@prototypes_app.command("pull", epilog="Example: ngd prototypes pull user/my-grid@v1 --out grid.safetensors")
def prototypes_pull(
    source: Annotated[str, typer.Argument(metavar="USER/REPO[@REVISION]", help="A repository on the Hub.")],
    out: Annotated[Path, OUTPUT(help="The grid's file; an earlier one is replaced.")],
) -> None:
    """Download a grid, check all of it, and write it to a file."""
    from ngd_timm.core.hub import pin
    from ngd_timm.grid.card import describe
    from ngd_timm.grid.prototypes import GRID_FILE, PrototypeGrid

    pinned = pin(source, GRID_FILE)
    grid = PrototypeGrid.from_pretrained(pinned)
    grid.save(out)
    _say(describe(grid, f"{out} from {pinned}"))


@prototypes_app.command("show", epilog="Example: ngd prototypes show gameemo-v2 --plot grid.png")
def prototypes_show(
    grid: Annotated[str, typer.Argument(help="A bundled version or a file; default: the newest that is bundled.")] = "",
    plot: Annotated[Path | None, OUTPUT(help="Draw counts and the cosine matrix into this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a grid is made of and what its tests say."""
    from ngd_timm.grid.card import as_dict, describe
    from ngd_timm.grid.prototypes import PrototypeGrid

    opened = PrototypeGrid.from_spec(grid) if grid else PrototypeGrid.default()
    if plot is not None:
        opened.plot(plot)
    _say(_json(as_dict(opened)) if as_json else describe(opened, grid or "bundled grid"))


def main() -> None:
    """Entry point of the `ngd` command."""
    start_logging()
    # as an exception, so that temporary files go
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with one_line_errors():
        try:
            app()
        except Stopped as stop:
            leave_with(str(stop), stop.exit_code)


if __name__ == "__main__":
    main()
