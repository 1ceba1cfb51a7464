"""Methods by name: every preset runs within its budget, and what does not fit is refused with a sentence."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from invsolve.inference import CountedPrior
from invsolve.operators import (
    CartesianMRI,
    GaussianNoise,
    Mask,
    MatrixOperator,
    Measurement,
    Operator,
    PoissonNoise,
)
from invsolve.priors import GaussianPrior
from invsolve.samplers import DAPS, DDS, DPS, MCG, DiffPIR, DivergenceError, Sampler
from invsolve.samplers.base import linear_operator, noise_level, report, start
from invsolve.samplers.ffhq import PAPER, TASKS, ffhq_settings
from invsolve.samplers.presets import _SETTINGS, PRESETS, SAMPLERS, choose

LIMITS = {"fast": 25, "balanced": 100, "best": 1000}


class Square(Operator):
    """Nonlinear: the squares of the pixels."""

    def __init__(self) -> None:
        super().__init__((1, 2, 2), (1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x**2


def measurement(operator: Operator | None = None, noise: Any = None) -> Measurement:
    if operator is None:
        operator = MatrixOperator(torch.tensor([[0.5, 0.5, 0.5, 0.5]], dtype=torch.float64), (1, 2, 2))
    y = torch.full((1, *operator.out_shape), 0.3, dtype=torch.float64)
    return Measurement(y, operator, noise or GaussianNoise(0.1))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_preset_keeps_to_its_budget(name: str, preset: str) -> None:
    prior = CountedPrior(GaussianPrior(torch.zeros(1, 2, 2, dtype=torch.float64), 0.25))
    sampler = choose(name, preset, measurement())
    assert type(sampler) is SAMPLERS[name]
    x = sampler(measurement(), prior, generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(x).all())
    # the budget of a particle method is that of one particle, but for TwistedMMPS
    limit = LIMITS[preset]
    if name != "twistedmmps":
        limit *= sampler.settings().get("num_particles", sampler.settings().get("num_candidates", 1))
    assert 0 < prior.forward_count <= limit
    assert (prior.backward_count > 0) == sampler.needs_gradient
    # the settings are the preset's, the rest the sampler's own defaults
    assert {key: sampler.settings()[key] for key in _SETTINGS[name][preset]} == _SETTINGS[name][preset]


def test_better_presets_spend_more() -> None:
    for name in SAMPLERS:
        counts = [_SETTINGS[name][p]["num_steps"] * _SETTINGS[name][p].get("ode_steps", 1) for p in PRESETS]
        assert counts == sorted(set(counts))


def test_every_sampler_has_its_presets() -> None:
    assert set(_SETTINGS) == set(SAMPLERS)
    assert tuple(LIMITS) == PRESETS
    assert {DPS, MCG, DDS, DAPS, DiffPIR} <= set(SAMPLERS.values())
    for name, cls in SAMPLERS.items():
        assert tuple(_SETTINGS[name]) == PRESETS
        assert cls.name() == name
        assert cls.paper
        assert cls().settings().keys() == {field.name for field in fields(cls)}


def test_automatic_choice() -> None:
    assert isinstance(choose("auto", "fast", measurement()), DiffPIR)
    mask = measurement(Mask(torch.eye(2), (1, 2, 2), dtype=torch.float64))
    one, several = choose("auto", "fast", mask), choose("auto", "fast", mask, num_samples=2)
    assert isinstance(one, DiffPIR)
    assert isinstance(several, DiffPIR)
    assert (one.temperature, several.temperature) == (0, 1)
    assert isinstance(choose("auto", "fast", measurement(Square())), DPS)
    lines = CartesianMRI(torch.tensor([1, 0]), torch.ones((2, 2, 2), dtype=torch.complex128))
    kspace = choose("auto", "fast", Measurement(lines(torch.ones((1, 2, 2, 2)).double()), lines, GaussianNoise(0.1)))
    assert isinstance(kspace, DiffPIR)
    assert kspace.sigma_max < several.sigma_max
    assert choose("auto", "best", measurement()) != choose("auto", "fast", measurement())


def test_a_sampler_object_is_taken_as_it_is() -> None:
    sampler = DDS(num_steps=3)
    assert choose(sampler, "fast", measurement()) is sampler


@pytest.mark.parametrize(
    ("method", "preset", "sentence"),
    [
        ("pidgm", "fast", "unknown method 'pidgm'; did you mean 'pigdm'"),
        ("DAPS", "fast", "unknown method 'DAPS'; expected one of auto, daps, "),
        ("dps", "balance", "unknown preset 'balance'; did you mean 'balanced'"),
        ("dps", "zzz", "unknown preset 'zzz'; expected one of fast, balanced, best"),
    ],
)
def test_unknown_names(method: str, preset: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        choose(method, preset, measurement())


@pytest.mark.parametrize("method", ["dds", "mcg", DDS(), MCG()])
def test_linear_methods_refuse_a_nonlinear_operator(method: str | Sampler) -> None:
    prior = GaussianPrior(torch.zeros(1, 2, 2, dtype=torch.float64), 0.25)
    with pytest.raises(ValueError, match=r"(dds|mcg) needs a linear operator, Square is not; daps .*dps, .*"):
        choose(method, "fast", measurement(Square()))(measurement(Square()), prior)


def test_daps_by_name_takes_langevin_steps_where_the_operator_is_not_linear() -> None:
    inner = [choose("daps", "fast", measurement(operator)).settings()["inner"] for operator in (None, Square())]
    assert inner == ["exact", "langevin"]


def test_daps_asks_for_langevin_where_the_operator_is_not_linear() -> None:
    prior = GaussianPrior(torch.zeros(1, 2, 2, dtype=torch.float64), 0.25)
    with pytest.raises(ValueError, match=r"daps needs a linear operator, Square is not; .*inner='langevin'"):
        DAPS(5)(measurement(Square()), prior)
    x = DAPS(5, inner="langevin", inner_steps=3, sigma_max=2.0)(measurement(Square()), prior)
    assert bool(torch.isfinite(x).all())


def test_samplers_need_one_noise_level() -> None:
    each = GaussianNoise(torch.tensor([0.1, 0.2]))
    for noise in (PoissonNoise(0.1), each):
        with pytest.raises(ValueError, match=r"dds needs Gaussian noise with one standard deviation.*invsolve\.solve"):
            noise_level(DDS(), measurement(noise=noise))
    assert noise_level(DDS(), measurement(noise=GaussianNoise(torch.tensor([0.25])))) == 0.25
    assert linear_operator(DDS(), measurement()).in_shape == (1, 2, 2)


def test_start_has_the_type_of_the_data() -> None:
    x = start(measurement())
    assert x.shape == (1, 1, 2, 2)
    assert x.dtype == torch.float64
    complex_data = Measurement(torch.zeros((3, 1, 2, 2), dtype=torch.complex64), Square(), GaussianNoise(0.1))
    assert start(complex_data).dtype == torch.float32
    assert len(start(complex_data)) == 3


def test_a_diverging_run_stops_and_names_its_setting() -> None:
    prior = GaussianPrior(torch.zeros(1, 2, 2, dtype=torch.float64), 0.25)
    with pytest.raises(DivergenceError, match=r"not finite after step \d+ of 40 \(sigma .*\); lower step_size"):
        DAPS(40, inner="langevin", inner_steps=200, step_size=1e6, sigma_max=2.0)(measurement(), prior)
    assert issubclass(DivergenceError, ValueError)
    bad = torch.full((1, 1), float("nan"))
    assert not report(None, 3, 20, 1.0, bad, bad, "gamma")  # looked at every tenth step, and at the last
    for step in (10, 20):
        with pytest.raises(DivergenceError, match="lower gamma"):
            report(None, step, 20, 1.0, bad, bad, "gamma")
    assert report(lambda *_: True, 1, 20, 1.0, bad, bad, "gamma")
    assert not report(lambda *_: None, 1, 20, 1.0, bad, bad, "gamma")


def test_the_base_class_draws_nothing() -> None:
    prior = GaussianPrior(torch.zeros(1, 2, 2), 0.25)
    with pytest.raises(NotImplementedError, match="Sampler must write __call__"):
        Sampler()(measurement(), prior)
    with pytest.raises(AttributeError):
        DDS().num_steps = 3  # type: ignore[misc]


# --- published settings and what methods say of themselves ------------------------------------------------------------


@pytest.mark.parametrize("method", PAPER)
def test_published_settings_make_a_sampler(method: str) -> None:
    for task, settings in PAPER[method].items():
        assert task in TASKS
        sampler = choose(method, f"paper:ffhq-{task}", measurement())
        assert type(sampler) is SAMPLERS[method]
        assert settings.items() <= sampler.settings().items()
        assert ffhq_settings(method, task) == settings


def test_dps_has_its_authors_step_sizes() -> None:
    sizes = {task: ffhq_settings("dps", task)["step_size"] for task in PAPER["dps"]}
    assert sizes["sr4"] == 0.3
    assert sizes["box-inpainting"] == 0.5
    assert sizes["phase-retrieval"] == 1.0


@pytest.mark.parametrize(
    ("method", "preset", "sentence"),
    [
        ("dps", "paper:ffhq-sr8", "unknown FFHQ task 'sr8'; did you mean 'sr4'"),
        (
            "ddrm",
            "paper:ffhq-phase-retrieval",
            "no published settings of ddrm for the FFHQ task 'phase-.*; .*dps",
        ),
        ("dps", "paper:imagenet-sr4", "unknown suite of paper settings 'imagenet'; expected one of ffhq"),
        ("auto", "paper:ffhq-sr4", "name the method whose published settings to take, not 'auto'"),
    ],
)
def test_missing_published_settings(method: str, preset: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        choose(method, preset, measurement())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_method_says_what_it_needs(name: str) -> None:
    cls = SAMPLERS[name]
    assert cls.cost
    assert cls.nonlinear or cls.needs_linear, "serves linear operators only, but does not say that it needs one"
    assert ("gradient of the network" in cls.needs()) == cls.needs_gradient
    assert set(cls.nonlinear_settings) <= {field.name for field in fields(cls)}
    prior = GaussianPrior(torch.full((1, 2, 2), 0.5, dtype=torch.float64), 0.05)
    nonlinear = measurement(Square())
    sampler = choose(name, "fast", nonlinear)
    if cls.nonlinear:
        assert bool(torch.isfinite(sampler(nonlinear, prior, generator=torch.Generator().manual_seed(0))).all())
    else:
        with pytest.raises(ValueError, match=f"{name} needs a linear operator, Square is not"):
            sampler(nonlinear, prior)


def test_the_refusal_names_every_method_that_would_work() -> None:
    with pytest.raises(ValueError, match="needs a linear operator") as refusal:
        linear_operator(DDS(), measurement(Square()))
    named = str(refusal.value)
    for name, cls in SAMPLERS.items():
        assert (f" {name}," in named or f" {name} " in named) == cls.nonlinear
    assert "daps (inner='langevin')" in named
