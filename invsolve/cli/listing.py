"""`invsolve list`: tables of what there is."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from invsolve.cli.errors import UserError, show_path

Rows = tuple[list[str], list[list[str]]]


def run(what: str) -> int:
    """Print one table; see `invsolve list --help`."""
    tables: dict[str, Callable[[], Rows]] = {
        "operators": _operators,
        "samplers": _samplers,
        "priors": _priors,
        "problems": _problems,
    }
    if what not in tables:
        from invsolve.problems.photo import suggest

        raise UserError(f"there is no list of {what!r}; {suggest(what, tuple(tables))}")
    header, rows = tables[what]()
    table = Table(*header, title=f"{what} ({len(rows)})", title_justify="left")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    return 0


def _operators() -> Rows:
    from invsolve.operators import registry
    from invsolve.operators.base import LinearOperator

    rows = [
        [e.name, e.cls.__name__, "yes" if issubclass(e.cls, LinearOperator) else "no", e.summary]
        for e in registry.entries()
    ]
    return ["name", "class", "linear", "what it does"], rows


def _samplers() -> Rows:
    from invsolve.samplers.presets import SAMPLERS

    rows = []
    for name, cls in sorted(SAMPLERS.items()):
        paper = f"arXiv {cls.paper}" if cls.paper[:4].isdecimal() else cls.paper
        rows.append(
            [
                name,
                (cls.__doc__ or "").strip().splitlines()[0],
                paper,
                cls.cost,
                ", ".join(cls.needs()) or "-",
                cls.serves(),
            ]
        )
    return ["name", "what it does", "paper", "cost per step", "needs", "operators"], rows


def _priors() -> Rows:
    from invsolve.priors.registry import SHIPPED

    rows = []
    for shipped in SHIPPED.values():
        state = f"{shipped.path.stat().st_size / 1e6:.1f} MB" if shipped.path.is_file() else "file missing"
        rows.append([shipped.name, shipped.summary, state, show_path(shipped.path)])
    return ["name", "images", "size", "file"], rows


def _problems() -> Rows:
    from invsolve.problems.ffhq import FFHQ_TASKS
    from invsolve.problems.mri import MRI_TASKS
    from invsolve.problems.photo import PHOTO_TASKS

    rows = [[name, task.summary, f"invsolve restore ... --task {name}"] for name, task in PHOTO_TASKS.items()]
    rows += [[name, task.summary, f'Python: ffhq_problem("{name}")'] for name, task in FFHQ_TASKS.items()]
    rows += [[name, task.summary, f'Python: mri_problem("{name}")'] for name, task in MRI_TASKS.items()]
    return ["name", "what happened to the image", "how to use it"], rows
