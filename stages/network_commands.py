"""The commands that make networks: generate events with truth labels, and train on them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


def add_networks(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(rich_help_panel="Networks")(generate)
    app.command(rich_help_panel="Networks")(train)


class Process(StrEnum):
    """What can be generated."""

    EGAMMA = "egamma"


class Trainable(StrEnum):
    """What can be trained."""

    EG = "eg"


def generate(
    process: Annotated[Process, typer.Argument(help="egamma: single electrons and photons of 50 GeV.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The ROOT file to make.")],
    n: Annotated[int, typer.Option("--events", "-n", min=1, help="How many events.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same events.")] = 1,
) -> None:
    """Make events with truth labels, by a fast simulation of the tracker material and the ECAL barrel.

    streamer generate egamma -n 10000 -o events.root
    """
    from rich.progress import Progress

    from stages.simulation.sample import generate_file

    with Progress(transient=True) as progress:
        task = progress.add_task(f"generating {process}", total=n)
        generate_file(n, out, seed, lambda done: progress.advance(task, done))
    print(f"{n:,} events in {out}")


def train(
    tagger: Annotated[Trainable, typer.Argument(help="eg: electrons against photons.")],
    input: Annotated[list[Path], typer.Option("--input", "-i", help="Labelled event file; may be repeated.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to make.")],
    test: Annotated[
        list[Path] | None, typer.Option(help="Events for the final AUC (by default a fifth of the input).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and mirroring.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the events at most.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="Threads; their number can change the last digits.")] = 2,
) -> None:
    """Train a network, and write it as ONNX with a model card and its ROC picture beside it. Needs the extra 'train'.

    streamer train eg --input train.root --output my.onnx
    """
    from rich.console import Console

    from stages.training.session import train_egamma

    console = Console(stderr=True)
    command = f"streamer train {tagger} {' '.join(f'--input {path.name}' for path in input)}"
    command += "".join(f" --test {path.name}" for path in test or [])
    command += f" --output {output.name} --seed {seed} --epochs {epochs} --threads {threads}"
    with console.status("starting") as status:

        def tell(line: str) -> None:
            console.log(line)
            status.update(line)

        done = train_egamma(
            input,
            test or [],
            output,
            seed=seed,
            epochs=epochs,
            threads=threads,
            command=command,
            tell=tell,
        )
    print(f"AUC {done.auc:.4f} +- {done.auc_error:.4f} on events it never saw")
    print(f"{done.model}, {done.card}, {done.roc}")
