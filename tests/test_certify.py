"""`invsolve certify`: the exact posteriors it measures against, its estimators, and the command."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from invsolve.certify import calibrate, closed_forms
from invsolve.certify.calibration import chi_square_tail
from invsolve.certify.mixture import (
    CELLS,
    INTERACTING,
    SCALE,
    SMALL_FILTER,
    GridMixture,
    MixtureProblem,
    benchmark,
    directions,
    draw,
    largest_batch,
    score,
    sliced_wasserstein,
    weight_error,
)
from invsolve.certify.pictures import PointCloud, picture, point_cloud
from invsolve.certify.report import PUBLISHED
from invsolve.certify.settings import REFERENCE, reference
from invsolve.cli import listing
from invsolve.operators import Measurement
from invsolve.operators.noise import Generators
from invsolve.priors import Prior
from invsolve.samplers import RSD, TDS, Callback, Cloud, Langevin, REDDiff, Sampler, TwistedMMPS
from invsolve.samplers.presets import SAMPLERS, choose


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("d", "m"), [(2, 1), (8, 2)])
def test_the_problem_is_the_general_mixture(d: int, m: int) -> None:
    """The fast formulas of the benchmark against the general ones of GaussianMixturePrior."""
    from invsolve.priors import GaussianMixturePrior

    problem = MixtureProblem.make(d, m, 1)
    general = GaussianMixturePrior(
        problem.prior.weights, problem.prior.means.reshape(25, 1, 1, d), problem.prior.std**2
    )
    x = general.sample(50, generator())
    sigma = torch.logspace(-2, 1, 50, dtype=torch.float64)
    noisy = x + sigma[:, None, None, None] * torch.randn(x.shape, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(problem.prior.denoise(noisy, sigma), general.denoise(noisy, sigma))
    exact = general.posterior(problem.operator, problem.y[0], problem.noise_std)
    torch.testing.assert_close(problem.log_weights().exp(), exact.weights, atol=1e-9, rtol=1e-6)
    likely = exact.sample(50, generator())
    ours, theirs = problem.log_density(likely), exact.log_density(likely)
    torch.testing.assert_close(ours - ours[0], theirs - theirs[0], atol=1e-5, rtol=1e-6)
    draws = problem.exact(20000, generator())
    along = directions(d, 50)
    distance = sliced_wasserstein(draws.flatten(1), exact.sample(20000, generator(1)).flatten(1), along)
    assert distance < 0.01
    torch.testing.assert_close((SCALE * problem.prior.means).abs().amax(), torch.tensor(16.0, dtype=torch.float64))
    assert float(problem.operator.norm()) == pytest.approx(1, rel=1e-3)


def test_problems_are_drawn_anew_and_repeat() -> None:
    one, same, other = (MixtureProblem.make(8, 2, seed) for seed in (0, 0, 1))
    assert torch.equal(one.y, same.y)
    assert not torch.equal(one.prior.weights, other.prior.weights)
    assert set(CELLS) == set(PUBLISHED["mcgdiff"])


def test_sliced_wasserstein() -> None:
    """A shift by v has the mean of |<v, direction>|: for unit directions in the plane 2/pi |v|."""
    x = torch.randn((500, 2), generator=generator(), dtype=torch.float64)
    along = directions(2, 4000)
    assert sliced_wasserstein(x, x[torch.randperm(500, generator=generator())], along) < 1e-12
    shifted = x + torch.tensor([3.0, 4.0]).double()
    assert sliced_wasserstein(x, shifted, along) == pytest.approx(5 * 2 / math.pi, rel=0.02)


def test_weight_error() -> None:
    problem = MixtureProblem.make(8, 4, 0)
    assert weight_error(problem.exact(4000, generator()).flatten(1), problem) < 0.03
    wrong = int(problem.log_weights().argmin())
    assert weight_error(problem.prior.means[[wrong]].expand(100, -1), problem) > 0.9


def test_tds_reaches_the_floor() -> None:
    """A small version of the benchmark; methods that freeze the modes' weights score 2 to 9 here."""
    for seed in range(2):
        result = score(TDS(60, 500), MixtureProblem.make(8, 2, seed), samples=500, seed=seed)
        assert result.distance < 2 * result.floor + 0.15
        assert result.weight_error < 0.1
        assert 0 < result.ess <= 1


def test_closed_forms() -> None:
    assert closed_forms.EXACT.mean == pytest.approx((0.917, -0.735), abs=1e-3)
    assert closed_forms.EXACT.seen == pytest.approx((0.083, 0.265), abs=1e-3)
    exact = closed_forms.moments(closed_forms.problem().exact(20000, generator()))
    assert exact.mean == pytest.approx(closed_forms.EXACT.mean, abs=0.02)
    assert exact.seen == pytest.approx(closed_forms.EXACT.seen, rel=0.05)
    found = closed_forms.measure(
        Langevin(60, 30, sigma_max=5.0, sigma_min=0.002, step=1.0, prior_std=1 / SCALE), samples=4000
    )
    assert found.seen == pytest.approx(closed_forms.EXACT.seen, rel=0.1)
    assert found.unseen == pytest.approx(1, rel=0.05)


def test_calibration_passes_the_exact_posterior_and_fails_others() -> None:
    good = calibrate(None, truths=100, samples=39)
    assert good.passed
    assert good.coverage[0.9] == pytest.approx(0.9, abs=0.1)

    class IgnoresTheData(Sampler):
        """Draws from the prior: its ranks are uniform for every statistic that does not look at the data."""

        def __call__(
            self,
            measurement: Measurement,
            prior: Prior,
            *,
            generator: Generators = None,
            callback: Callback | None = None,
        ) -> Tensor:
            assert isinstance(prior, GridMixture)
            assert isinstance(generator, torch.Generator)
            return prior.sample(len(measurement.y), generator)

    bad = calibrate(IgnoresTheData(), truths=100, samples=39)
    assert not bad.passed
    assert max(bad.p_values["misfit to the data"], bad.p_values["posterior density"]) < 1e-6
    assert min(value for name, value in bad.p_values.items() if "space" in name) > 0.001
    point = calibrate(REDDiff(100), truths=100, samples=39)  # an estimate without a spread
    assert not point.passed
    assert point.spread["row space"] < 0.5
    with pytest.raises(ValueError, match="samples is 40; expected a number one below a multiple of 10"):
        calibrate(None, samples=40)
    assert chi_square_tail(16.919, 9) == pytest.approx(0.05, abs=1e-4)


def test_samples_of_a_small_filter_are_independent() -> None:
    """Each sample has its own filter, as in `invsolve.solve`; a large filter gives its whole cloud."""
    problem = MixtureProblem.make(8, 1, 0)
    seen: list[int] = []

    class Watched(TwistedMMPS):
        def cloud(self, measurement: Measurement, *args: Any, **kwargs: Any) -> Cloud:
            seen.append(len(measurement.y))
            return super().cloud(measurement, *args, **kwargs)

    draw(Watched(3, 4), problem, 60, generator())
    draw(Watched(3, SMALL_FILTER), problem, 60, generator())
    assert seen == [60, 2]


def test_interacting_samples_come_in_groups() -> None:
    problem = MixtureProblem.make(8, 1, 0)
    x, _ = draw(RSD(2), problem, 70, generator())
    assert len(x) == 70
    assert largest_batch(RSD(2), 8) == INTERACTING < 70


def test_reference_settings_cover_every_sampler_and_follow_the_problem() -> None:
    assert {name.partition("-")[0] for name in REFERENCE} == set(SAMPLERS)
    for name in REFERENCE:
        small, large = (reference(name, MixtureProblem.make(d, 1, 0)) for d in (8, 80))
        assert type(small) is SAMPLERS[name.partition("-")[0]]
        if "sigma_max" in small.settings():
            outermost = [16 * math.sqrt(d) for d in (8, 80)]
            found = [SCALE * float(s.settings()["sigma_max"]) for s in (small, large)]
            assert found == pytest.approx([4 * length for length in outermost])


def test_pictures_show_every_cloud(tmp_path: Path) -> None:
    clouds = {"exact too": point_cloud(None, 200, seed=1), "nothing": PointCloud(torch.zeros(1, 2), 0.9)}
    picture(clouds, tmp_path / "clouds.png")
    assert (tmp_path / "clouds.png").read_bytes().startswith(b"\x89PNG")
    assert clouds["exact too"].weight_error < 0.1


COMMAND = [sys.executable, "-m", "invsolve", "certify"]
OWN = """
from dataclasses import dataclass
from invsolve.samplers import Sampler
from invsolve.samplers.base import start


@dataclass(frozen=True)
class Nothing(Sampler):
    level: float = 0.0

    def __call__(self, measurement, prior, *, generator=None, callback=None):
        return start(measurement) + self.level
"""


def test_the_command_takes_a_sampler_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    arguments = [
        "mine:Nothing",
        "--set",
        "level=0.5",
        "--dims",
        "8",
        "--problems",
        "2",
        "--samples",
        "100",
        "-o",
        "out",
    ]
    done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "FAILED" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Nothing.png", "certify.csv", "certify.txt"]
    rows = list(csv.DictReader((tmp_path / "out" / "certify.csv").read_text().splitlines()))
    assert [(r["d"], r["d_y"], r["problems"]) for r in rows] == [("8", "1", "2"), ("8", "2", "2"), ("8", "4", "2")]
    assert all(float(r["mean"]) > 2 and float(r["floor_mean"]) < 1 for r in rows)
    assert [r["published_mcgdiff"] for r in rows] == ["1.43", "0.49", "0.38"]
    assert (tmp_path / "out" / "Nothing.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tdss"], "unknown method 'tdss'; did you mean 'tds'?"),
        (["json:loads"], "json:loads is no invsolve.samplers.Sampler"),
        (["no_such_module:A"], "the module 'no_such_module' cannot be imported"),
        (["json:nothing"], "the module 'json' has no 'nothing'"),
        (["tds", "--preset", "slow"], "unknown preset 'slow'"),
        (["tds", "--dims", "9"], "--dims is '9'; expected some of 8,80,800"),
        (["tds", "--set", "steps=3"], "--set 'steps=3' is not NAME=VALUE with a setting of tds: num_steps"),
        (["tds", "--problems", "0"], "--problems is 0; expected at least 1"),
        (["tds", "tds"], "methods are named twice"),
        (["enkg", "--set", "num_particles=1"], "num_particles is 1; the ensemble needs at least 2"),
    ],
)
def test_bad_arguments(arguments: list[str], sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from invsolve.cli.app import app

    before = os.getcwd()
    try:
        os.chdir(tmp_path)
        result = CliRunner().invoke(app, ["certify", *arguments])
    finally:
        os.chdir(before)
    assert result.exit_code == 2
    assert sentence in " ".join((result.output + capfd.readouterr().err).split())
    assert not (tmp_path / "certify").exists()


def test_the_documented_table_is_the_registry() -> None:
    """docs/samplers.md says of every method what `invsolve list samplers` prints."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "samplers.md").read_text(encoding="utf-8")
    section = page.split("## The methods", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    documented = {row[0].strip("`"): row[1:] for row in rows}
    _, printed = listing._samplers()
    assert documented == {row[0]: row[2:] for row in printed}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tds", "mcgdiff", "twistedmmps"])
def test_best_presets_beat_the_published_table(name: str) -> None:
    """d = 8 and 80, five problems a cell: better than published MCGdiff; TDS within twice the floor in the median.

    TwistedMMPS, with 1000 evaluations a sample, only has to stay below 1 in the median at d = 80, where methods that
    freeze the modes' weights score 7 to 9.
    """
    own = name == "twistedmmps"
    sampler = choose(name, "best", MixtureProblem.make(8, 1, 0).measurement(1))
    cells = tuple(c for c in CELLS if c[0] == 80 or (c[0] == 8 and not own))
    for cell, scores in benchmark(sampler, cells, problems=5, samples=250 if own else 2000).items():
        distances = torch.tensor([s.distance for s in scores])
        floors = torch.tensor([s.floor for s in scores])
        if own:
            assert float(distances.median()) < 1, cell
        else:
            assert float(distances.mean()) < PUBLISHED["mcgdiff"][cell][0], cell
        if name == "tds":
            assert float(distances.median()) < 2 * float(floors.median()), cell
