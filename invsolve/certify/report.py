"""The benchmark as text and as CSV, with the published figures beside ours."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence

from invsolve.certify import closed_forms
from invsolve.certify.calibration import Calibration
from invsolve.certify.closed_forms import Moments
from invsolve.certify.mixture import Score

Cell = tuple[int, int]
PUBLISHED: dict[str, dict[Cell, tuple[float, float]]] = {
    "mcgdiff": {
        (8, 1): (1.43, 0.55),
        (8, 2): (0.49, 0.24),
        (8, 4): (0.38, 0.25),
        (80, 1): (1.39, 0.45),
        (80, 2): (0.67, 0.24),
        (80, 4): (0.28, 0.14),
        (800, 1): (2.40, 1.00),
        (800, 2): (1.31, 0.60),
        (800, 4): (0.47, 0.19),
    },
    "ddrm": {
        (8, 1): (5.88, 1.16),
        (8, 2): (5.20, 1.32),
        (8, 4): (2.51, 1.29),
        (80, 1): (5.64, 1.10),
        (80, 2): (7.07, 1.35),
        (80, 4): (7.81, 1.48),
        (800, 1): (7.44, 1.15),
        (800, 2): (8.95, 1.12),
        (800, 4): (8.39, 1.48),
    },
    "dps": {
        (8, 1): (4.86, 1.01),
        (8, 2): (5.79, 1.96),
        (8, 4): (3.48, 1.52),
        (80, 1): (4.98, 1.14),
        (80, 2): (5.10, 1.23),
        (80, 4): (4.28, 1.26),
        (800, 1): (6.49, 1.16),
        (800, 2): (6.88, 1.01),
        (800, 4): (5.51, 1.18),
    },
}
"""Mean sliced W1 and 1.96 standard errors over 20 problems, 20 steps (arXiv 2308.07983, its table)."""

COLUMNS = (
    "method",
    "d",
    "d_y",
    "problems",
    "mean",
    "half_width",
    "median",
    "floor_mean",
    "floor_median",
    "weight_error_median",
    "ess_min",
    "published",
    "published_half_width",
    "published_mcgdiff",
)


def row(method: str, cell: Cell, scores: Sequence[Score]) -> dict[str, object]:
    """One line of the table."""
    distances = [s.distance for s in scores]
    width = 1.96 * statistics.stdev(distances) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    own = PUBLISHED.get(method, {}).get(cell, (math.nan, math.nan))
    return {
        "method": method,
        "d": cell[0],
        "d_y": cell[1],
        "problems": len(scores),
        "mean": statistics.fmean(distances),
        "half_width": width,
        "median": statistics.median(distances),
        "floor_mean": statistics.fmean(s.floor for s in scores),
        "floor_median": statistics.median(s.floor for s in scores),
        "weight_error_median": statistics.median(s.weight_error for s in scores),
        "ess_min": min(s.ess for s in scores),
        "published": own[0],
        "published_half_width": own[1],
        "published_mcgdiff": PUBLISHED["mcgdiff"].get(cell, (math.nan, math.nan))[0],
    }


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """All lines with a header; unknown values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in rows:
        writer.writerow({key: "" if _unknown(value) else value for key, value in line.items()})
    return text.getvalue()


def as_text(rows: Sequence[Mapping[str, object]]) -> str:
    """The benchmark for reading."""
    header = (
        "method              d  d_y  mean +- 95 %     median   floor  x floor  wrong weight  least ESS  published  "
        "MCGdiff"
    )
    lines = ["25-component mixture, sliced W1 to the exact posterior (lower is better)", header]
    for r in rows:
        ratio = _number(r["median"]) / _number(r["floor_median"])
        lines.append(
            f"{r['method']!s:16s} {r['d']!s:>4s} {r['d_y']!s:>4s}  {_show(r['mean'])} +- {_show(r['half_width'])}  "
            f"{_show(r['median'])}  {_show(r['floor_median'])}  {ratio:7.1f}  {_show(r['weight_error_median']):>12s}  "
            f"{_show(r['ess_min']):>9s}  {_show(r['published']):>9s}  {_show(r['published_mcgdiff']):>7s}"
        )
    lines.append(
        "floor: exact against exact samples. wrong weight: total variation of the modes' weights, median. "
        "ESS: share of the particles. published: arXiv 2308.07983."
    )
    return "\n".join(lines)


def moments_text(found: Mapping[str, Moments]) -> str:
    """The Gaussian problem: moments by method, the exact ones first."""
    lines = ["Gaussian prior, two measured directions", "method             mean             variance seen    unseen"]
    for name, m in {"exact": closed_forms.EXACT, **found}.items():
        lines.append(
            f"{name:16s} {m.mean[0]:7.3f} {m.mean[1]:7.3f}  {m.seen[0]:7.3f} {m.seen[1]:7.3f}  {m.unseen:7.3f}"
        )
    return "\n".join(lines)


def calibration_text(found: Mapping[str, Calibration]) -> str:
    """Ranks, coverage and spread by method."""
    lines = ["Calibration, d = 8, d_y = 2 (ranks of the truth among the samples)"]
    for name, c in found.items():
        worst = min(c.p_values, key=lambda key: c.p_values[key])
        lines.append(
            f"{name:16s} {'passed' if c.passed else 'FAILED'}: least p-value {c.p_values[worst]:.2g} ({worst}); "
            + "density regions of "
            + ", ".join(f"{100 * q:.0f} % hold {100 * share:.0f} %" for q, share in c.coverage.items())
            + "; variance over squared error "
            + ", ".join(f"{value:.2f} ({block})" for block, value in c.spread.items())
        )
    return "\n".join(lines)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _unknown(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _show(value: object) -> str:
    number = _number(value)
    return "-" if math.isnan(number) else f"{number:6.3f}"
