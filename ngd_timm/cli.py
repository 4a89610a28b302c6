"""The `ngd` command. Each subcommand only reads its arguments and calls one function of the library."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.paths import last_part
from ngd_timm.core.version import __version__
from ngd_timm.train.interruption import Stopped

__all__ = ["app", "main"]

_GRACE_SECONDS = 5.0

app = typer.Typer(
    name="ngd",
    help="NeuroGaze-Distill for timm: from EEG to a frozen valence/arousal grid, from faces to a plain timm model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
teacher_app = typer.Typer(help="The EEG teacher.", no_args_is_help=True)
prototypes_app = typer.Typer(help="The prototype grid.", no_args_is_help=True)
app.add_typer(teacher_app, name="teacher")
app.add_typer(prototypes_app, name="prototypes")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe to change.")]
RepoId = Annotated[str, typer.Argument(metavar="USER/REPO", help="The repository on the Hub; made if it is missing.")]
Private = Annotated[bool | None, typer.Option("--private/--public", help="Of a repository that is made now.")]
Branch = Annotated[str | None, typer.Option("--revision", help="A branch, made if it is missing; default: main.")]
Message = Annotated[str | None, typer.Option("--message", help="Title of the commit.")]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would go up.")]
Folder = Annotated[Path | None, typer.Option(help="Write what would go up into this new folder, and push nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ngd-timm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """NeuroGaze-Distill for timm: from EEG to a frozen valence/arousal grid, from faces to a plain timm model."""


@app.command(epilog="Example: ngd demo --out ngd_demo")
def demo(
    out: Annotated[Path, typer.Option(help="A new or empty folder.")] = Path("ngd_demo"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Run the whole flow on simulated EEG and drawn faces: minutes on two cores, no data, no network."""
    from ngd_timm.experiments.demo import run_demo

    typer.echo(f"open {run_demo(out, seed=seed)}")


@app.command(epilog="Example: ngd train b0_ce data.root=ferplus/ optim.epochs=12; then ngd train --resume runs/b0_ce-0")
def train(
    recipe: Annotated[str | None, typer.Argument(help="A packaged recipe's name or a YAML file.")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="A run directory to continue instead.")] = None,
) -> None:
    """Train a student by a recipe into a run directory."""
    from ngd_timm.core.distributed import is_first, leave
    from ngd_timm.core.recipe import Recipe, load_recipe, recipe_names

    if (recipe is None) == (resume is None):
        raise InputError(f"give one recipe, or --resume RUN. Recipes: {', '.join(recipe_names())}")
    from ngd_timm.report import try_page
    from ngd_timm.train import loop

    if resume is not None:
        run = loop.resume(resume)
    elif recipe is not None:
        run = loop.train(load_recipe(Recipe, recipe, overrides or []))
    if is_first():
        try_page(run)
        typer.echo(run)
    leave()


@app.command(
    epilog="Example: ngd evaluate runs/b0_ce-0 --data ferplus=ferplus/:test --data ckplus=ckplus/ --format markdown"
)
def evaluate(
    student: Annotated[str, typer.Argument(help="A run directory, a student folder, or hf-hub:user/repo.")],
    data: Annotated[list[str], typer.Option(metavar="NAME=ROOT[:SPLIT]", help="Without :SPLIT all rows; repeatable.")],
    out: Annotated[Path | None, typer.Option(help="Write the figures here, in metrics.json's form.")] = None,
    label_rule: Annotated[str | None, typer.Option(help="majority, argmax or votes; default: as the run.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Average with the mirror image.")] = None,
    keep_duplicates: Annotated[bool, typer.Option(help="Keep copies of training pictures.")] = False,
    temperature: Annotated[
        float, typer.Option(help="Of the softmax behind the calibration error, and of no more.")
    ] = 1.0,
    predictions: Annotated[bool, typer.Option(help="Keep logits and embeddings in the run's predictions/.")] = False,
    form: Annotated[str, typer.Option("--format", help="text, markdown, latex or json.")] = "text",
    as_json: AsJson = False,
) -> None:
    """Score a student on any number of data sets, in both protocols, looking at every picture once."""
    from ngd_timm.evaluate.student import evaluate as evaluate_student
    from ngd_timm.evaluate.student import summary_line
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
    )
    if form == "json":
        _print_json(results)
    elif form == "text":
        for key, entry in results.items():
            typer.echo(summary_line(key, entry))
    else:
        table = score_table({last_part(student): results})
        typer.echo(table.markdown() if form == "markdown" else table.latex())


@app.command(epilog="Example: ngd robustness runs/b0_ce-* runs/b3_full-* --data ferplus=ferplus/:test --out robustness")
def robustness(
    students: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDENT...",
            help="Run directories, student folders or hf-hub:user/repo; runs of one recipe are its seeds, and the "
            "first recipe is what the others are compared with.",
        ),
    ],
    data: Annotated[
        str, typer.Option(metavar="NAME=ROOT[:SPLIT]", help="The pictures to corrupt; without :SPLIT all rows.")
    ],
    out: Annotated[Path, typer.Option(help="robustness.json, table.md and robustness.png go here.")],
    severities: Annotated[str, typer.Option(metavar="1,2,...", help="Which of 1 to 5, with commas.")] = "1,2,3,4,5",
    label_rule: Annotated[str | None, typer.Option(help="majority, argmax or votes; default: as the runs.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Average with the mirror image.")] = None,
    amp: Annotated[str, typer.Option(help="Precision: off (float32), bf16, fp16 or auto.")] = "off",
    keep_duplicates: Annotated[bool, typer.Option(help="Keep copies of training pictures.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the corruptions and of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score students under fifteen common corruptions, all on the same damaged pictures, differences paired."""
    from ngd_timm.experiments.robustness import robustness as score

    levels = severities.replace(",", " ").split()
    if not all(level.isdecimal() for level in levels):
        raise InputError(f"--severities takes whole numbers with commas, such as 1,3,5; got '{severities}'")
    found, tables = score(
        students,
        data,
        out,
        severities=[int(level) for level in levels],
        label_rule=label_rule,
        drop_duplicates=False if keep_duplicates else None,
        flip=flip,
        amp=amp,
        seed=seed,
    )
    if as_json:
        _print_json(found)
    else:
        typer.echo("\n\n".join(table.text() for table in tables))


@app.command(epilog="Example: ngd ablate b0_ce b1_kd b2_proto b3_full data.root=ferplus/ --seeds 3 --out ablation")
def ablate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...",
            help="Recipes, the first is the reference; keys to change in all of them, or in one: RECIPE:KEY=VALUE.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Runs, ablation.json, table.md, table.tex and ablation.png go here.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many, each trained by every recipe.")] = 3,
    warm_start: Annotated[
        int | None, typer.Option(min=1, metavar="EPOCHS", help="Start every recipe from so much cross-entropy.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train several recipes on several seeds and print means and paired differences; run again, it goes on."""
    from ngd_timm.experiments.ablation import ablate as run_ablation

    tables = run_ablation(arguments, seeds, out, warm_start)
    if as_json:
        _print_json(json.loads((out / "ablation.json").read_text(encoding="utf-8")))
    else:
        typer.echo("\n\n".join(table.text() for table in tables))


@app.command(epilog="Example: ngd export runs/b3_full-0 --format onnx --out student.onnx")
def export(
    student: Annotated[str, typer.Argument(help="A run directory, a student folder, or user/repo on the Hub.")],
    out: Annotated[Path, typer.Option(help="The file to write; for timm a new folder.")],
    form: Annotated[str, typer.Option("--format", help="timm, onnx or pt2 (torch.export).")] = "timm",
) -> None:
    """Write a student for deployment without this package; checked against PyTorch before it gets its name."""
    from ngd_timm.publish.export import export_student

    typer.echo(export_student(student, form, out))


@app.command(epilog="Example: ngd predict face.png; or: ngd predict runs/b3_full-0 face.png faces/ --annotate answers/")
def predict(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[STUDENT] IMAGE...",
            help="A run directory, a student folder or user/repo on the Hub; without one the student that ships is "
            "asked. Then pictures cropped to one face, or folders of them.",
        ),
    ],
    annotated: Annotated[
        Path | None, typer.Option("--annotate", help="A new folder for a picture with its answer each.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_megapixels: Annotated[float, typer.Option(help="Open images of up to so many megapixels, beyond 100.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Say which expression each face shows, and where a picture does not look like a face crop."""
    from ngd_timm.predict.predictor import Predictor, annotate_all, image_files, student_and_images

    student, images = student_and_images(arguments)
    if not images:
        raise InputError(f"{student} is a student; give pictures after it, or folders of them")
    files = image_files(images)
    answers = Predictor(student, device, max_megapixels=max_megapixels)(files)
    if annotated is not None:
        annotate_all(answers, annotated)
    if as_json:
        _print_json([answer.as_dict() for answer in answers])
        return
    width = max(len(str(file)) for file in files)
    for file, answer in zip(files, answers, strict=True):
        first, second, *_ = sorted(answer.probabilities.items(), key=lambda item: -item[1])
        notes = "".join(f"  ({note})" for note in answer.notes)
        typer.echo(f"{file!s:{width}}  {first[0]} {100 * first[1]:.0f} %, {second[0]} {100 * second[1]:.0f} %{notes}")


@app.command(epilog="Example: ngd push runs/b3_full-0 user/my-student --metrics test.json --dry-run")
def push(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    repo: RepoId,
    metrics: Annotated[
        list[Path] | None, typer.Option(help="Further figures for the card, from `ngd evaluate --out`; may repeat.")
    ] = None,
    private: Private = None,
    revision: Branch = None,
    message: Message = None,
    create_pr: CreatePr = False,
    dry_run: DryRun = False,
    folder: Folder = None,
) -> None:
    """Publish a run's student on the Hugging Face Hub, with card, licence, recipe, fingerprint and metrics."""
    from ngd_timm.evaluate.run import load_run, read_metrics
    from ngd_timm.publish.push import push_run, stage_run

    opened = load_run(run)
    more = read_metrics(metrics or [], opened)
    if dry_run or folder is not None:
        _show_staged(repo, lambda at: stage_run(opened, at, repo, more), folder)
    else:
        done = push_run(
            opened, repo, more, private=private, revision=revision, commit_message=message, create_pr=create_pr
        )
        typer.echo(f"{done.url}\nhf-hub:{done.repo}@{done.commit}")


@app.command(epilog="Example: ngd publish --dry-run")
def publish(
    namespace: Annotated[
        str | None, typer.Option(help="A user or organisation; default: the one that pyproject.toml names.")
    ] = None,
    private: Private = None,
    dry_run: DryRun = False,
) -> None:
    """Publish everything that ships in hub/: every version of the grid and of the student, each under its own name."""
    from ngd_timm.core.hub import upload_staged
    from ngd_timm.publish.push import namespace as own_namespace
    from ngd_timm.publish.push import packaged_artifacts

    for repo, stage in packaged_artifacts(namespace or own_namespace()).items():
        if dry_run:
            _show_staged(repo, stage, None)
        else:
            typer.echo(upload_staged(stage, repo, private=private).url)


def _show_staged(repo: str, stage: Callable[[Path], None], folder: Path | None) -> None:
    from ngd_timm.core.files import atomic_folder
    from ngd_timm.publish.push import listing

    if folder is not None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is not empty; choose a new folder with --folder DIR")
        with atomic_folder(folder) as temporary:
            stage(temporary)
        typer.echo(f"{folder} holds what would go to {repo}")
        return
    listed = listing(stage)
    typer.echo(f"{repo} would get:")
    for name, size, sha256 in listed:
        typer.echo(f"  {size:>10,} bytes  sha256 {sha256}  {name}")


@app.command(
    epilog="Example: ngd results ablation --data ferplus=ferplus/:valid --data ferplus=ferplus/:test --out RESULTS.md"
)
def results(
    ablation: Annotated[Path, typer.Argument(help="The folder that ngd ablate filled.")],
    data: Annotated[list[str], typer.Option(metavar="NAME=ROOT[:SPLIT]", help="Without :SPLIT all rows; repeatable.")],
    out: Annotated[Path, typer.Option(help="The page, Markdown; its figures go beside it as .json.")],
    label_rule: Annotated[
        list[str] | None, typer.Option(help="May be given several times; default: majority and argmax.")
    ] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="A run of its own beside the table; may be repeated.")
    ] = None,
    tried: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="A run that settings were chosen by; may be repeated.")
    ] = None,
    earlier: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="An earlier page's: its --beside and --tried are kept, folders or not."),
    ] = None,
) -> None:
    """Score the runs of an ablation on any sets by any label rules, and write what each term adds."""
    from ngd_timm.experiments.results import check_out, score_ablation, write_results

    check_out(out)
    rules = label_rule or ("majority", "argmax")
    write_results(score_ablation(ablation, data, rules, beside or (), tried or (), earlier), out)
    typer.echo(out)


@app.command(epilog="Example: ngd report runs/b3_full-0 --mistakes 12")
def report(
    folder: Annotated[Path, typer.Argument(help="A finished run directory, a teacher's, or an ablation's.")],
    mistakes: Annotated[
        int, typer.Option(min=0, help="Show so many of the surest wrong answers: the page then holds faces.")
    ] = 0,
) -> None:
    """Write report.html again, from the files that are there."""
    from ngd_timm.report import write_page

    typer.echo(write_page(folder, mistakes))


@teacher_app.command("fit", epilog="Example: ngd teacher fit teacher_gameemo data.root=gameemo_bandpower.npz")
def teacher_fit(
    recipe: Annotated[str, typer.Argument(help="A packaged teacher recipe's name or a YAML file.")],
    overrides: Overrides = None,
) -> None:
    """Fit an EEG teacher, a fold of subjects held out at a time, into a teacher run."""
    from ngd_timm.core.recipe import load_recipe
    from ngd_timm.core.teacher_recipe import TeacherRecipe
    from ngd_timm.eeg.teacher.fit import fit_teacher
    from ngd_timm.report import try_page

    run = fit_teacher(load_recipe(TeacherRecipe, recipe, overrides or []))
    try_page(run)
    typer.echo(run)


@teacher_app.command("simulate", epilog="Example: ngd teacher simulate dreamer DREAMER.mat --subjects 16")
def teacher_simulate(
    layout: Annotated[str, typer.Argument(help="dreamer, mahnob or deap: whose file layout.")],
    out: Annotated[Path, typer.Argument(help="The file (dreamer) or folder to write; it must not exist.")],
    subjects: Annotated[int, typer.Option(min=1)] = 16,
    trials: Annotated[int | None, typer.Option(min=1, help="A person; default: as in the real data set.")] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="A trial; default: 60.")] = None,
    effect: Annotated[float, typer.Option(min=0, help="Of valence and arousal on alpha and beta; 0: none.")] = 1.0,
    shuffled: Annotated[bool, typer.Option(help="Permute each person's ratings: nothing left to find.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write simulated EEG in a licensed data set's layout, to try the flow before the data come."""
    from ngd_timm.eeg.simulate.sets import write_simulated

    write_simulated(layout, out, subjects, trials, seconds, effect, shuffled, seed)
    typer.echo(out)


@prototypes_app.command("build", epilog="Example: ngd prototypes build runs/teacher_gameemo-0 --out grid.safetensors")
def prototypes_build(
    run: Annotated[Path, typer.Argument(help="A teacher run.")],
    out: Annotated[Path, typer.Option(help="The grid's file.")],
    size: Annotated[int, typer.Option(min=2, max=15, help="Cells a side.")] = 5,
    min_subjects: Annotated[int, typer.Option(min=1, help="Cells of fewer people count as empty.")] = 1,
    center: Annotated[bool, typer.Option(help="Subtract the grand mean.")] = False,
    card: Annotated[
        Path | None, typer.Option(help="Also write the grid's card (Markdown) here, its picture beside it.")
    ] = None,
) -> None:
    """Boil a teacher's held-out embeddings down to a frozen grid."""
    from ngd_timm.eeg.teacher.consolidate import build_grid
    from ngd_timm.grid.card import write_grid_card

    grid = build_grid(run, size=size, center=center, min_subjects=min_subjects)
    grid.save(out)
    if card is not None:
        write_grid_card(grid, card, out.stem)
        grid.picture(card.with_name("grid.png"))
    _describe(grid, str(out))


@prototypes_app.command("push", epilog="Example: ngd prototypes push grid.safetensors user/my-grid --private")
def prototypes_push(
    grid: Annotated[str, typer.Argument(help="A file or a packaged version.")],
    repo: RepoId,
    private: Private = None,
    revision: Branch = None,
    message: Message = None,
    create_pr: CreatePr = False,
    dry_run: DryRun = False,
    folder: Folder = None,
) -> None:
    """Publish a grid on the Hugging Face Hub, with its card, its licence and its picture."""
    from ngd_timm.grid.prototypes import PrototypeGrid
    from ngd_timm.grid.push import stage_grid

    opened = PrototypeGrid.from_spec(grid)
    if dry_run or folder is not None:
        _show_staged(repo, lambda at: stage_grid(opened, at, repo), folder)
    else:
        done = opened.push_to_hub(repo, private=private, revision=revision, commit_message=message, create_pr=create_pr)
        typer.echo(f"{done.url}\nhf-hub:{done.repo}@{done.commit}, sha256 of the grid {opened.sha256}")


@prototypes_app.command("pull", epilog="Example: ngd prototypes pull user/my-grid@v1 --out grid.safetensors")
def prototypes_pull(
    source: Annotated[str, typer.Argument(metavar="USER/REPO[@REVISION]", help="A repository on the Hub.")],
    out: Annotated[Path, typer.Option(help="The grid's file; an earlier one is replaced.")],
) -> None:
    """Download a grid, check all of it, and write it to a file."""
    from ngd_timm.core.hub import pin
    from ngd_timm.grid.prototypes import GRID_FILE, PrototypeGrid

    pinned = pin(source, GRID_FILE)
    grid = PrototypeGrid.from_pretrained(pinned)
    grid.save(out)
    _describe(grid, f"{out} from {pinned}")


@prototypes_app.command("show", epilog="Example: ngd prototypes show gameemo-v2 --picture grid.png")
def prototypes_show(
    grid: Annotated[str, typer.Argument(help="A packaged version or a file; default: the newest in the package.")] = "",
    picture: Annotated[Path | None, typer.Option(help="Draw counts and the cosine matrix into this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a grid is made of and what it can say."""
    from ngd_timm.grid.card import grid_findings
    from ngd_timm.grid.prototypes import PrototypeGrid

    opened = PrototypeGrid.from_spec(grid) if grid else PrototypeGrid.default()
    if picture is not None:
        opened.picture(picture)
    if as_json:
        _print_json(
            {
                "size": opened.size,
                "dim": opened.dim,
                "sha256": opened.sha256,
                "mean_cosine": opened.mean_cosine,
                "counts": opened.counts.tolist(),
                "findings": grid_findings(opened),
                "metadata": opened.metadata,
            }
        )
    else:
        _describe(opened, grid or "packaged grid")


def _describe(grid: object, name: str) -> None:
    from ngd_timm.grid.card import grid_findings
    from ngd_timm.grid.prototypes import PrototypeGrid

    assert isinstance(grid, PrototypeGrid)
    counts = grid.counts.reshape(grid.size, grid.size)
    typer.echo(f"{name}: {grid.size}x{grid.size} prototypes of {grid.dim} values, sha256 {grid.sha256}")
    typer.echo(f"cells filled: {int((counts > 0).sum())} of {counts.numel()}; mean cosine {grid.mean_cosine:.3f}")
    typer.echo("counts, arousal upwards, valence to the right:")
    for row in counts.T.flip(0).tolist():
        typer.echo("  " + " ".join(f"{value:5d}" for value in row))
    for sentence in grid_findings(grid):
        typer.echo(sentence)
    for key in sorted(grid.metadata):
        typer.echo(f"{key}: {grid.metadata[key]}")


def _speaks() -> bool:
    """Of several processes the first."""
    return int(os.environ.get("RANK", 0)) == 0


@contextlib.contextmanager
def _one_report() -> Iterator[None]:
    """Let only one of torchrun's processes report an error.

    The first process reports what it was given at once. Any other waits: torchrun ends all processes once one has
    failed, so what they share is not repeated. Other kinds of errors wait too: the end of a process breaks the
    collectives of the rest.
    """
    try:
        yield
    except Exception as error:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not (_speaks() and isinstance(error, (InputError, OSError))):
            signal.signal(signal.SIGTERM, lambda *_: os._exit(2))
            time.sleep(_GRACE_SECONDS)
        raise


def _leave(message: str, code: int) -> NoReturn:
    # what a user gave may hold line breaks, control characters, or bytes that are no text
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    if _speaks() or code == 2:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"ngd: {line}")
    sys.exit(code)


def main() -> None:
    """Entry point: input errors, and what the system refuses, become one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("ngd_timm").setLevel(logging.INFO if _speaks() else logging.ERROR)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself
    try:
        with _one_report():
            app()
    except InputError as error:
        _leave(str(error), 2)
    except Stopped as stop:
        _leave(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # the reader of a pipe (head, less) went away; that is no failure of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno is None:
            raise
        if error.filename is None:
            # what is still to be flushed at the exit would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(f"{os.fsdecode(error.filename or 'standard output')}: {error.strerror}", 2)


if __name__ == "__main__":
    main()
