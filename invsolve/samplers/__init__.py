"""Posterior samplers: frozen hyper-parameters and one call each."""

from invsolve.samplers.base import Callback, DivergenceError, Sampler
from invsolve.samplers.daps import DAPS
from invsolve.samplers.ddnm import DDNM
from invsolve.samplers.ddrm import DDRM
from invsolve.samplers.dds import DDS
from invsolve.samplers.dflow import DFlow
from invsolve.samplers.diffpir import DiffPIR
from invsolve.samplers.dps import DPS
from invsolve.samplers.enkg import EnKG
from invsolve.samplers.flair import FLAIR
from invsolve.samplers.flowchef import FlowChef
from invsolve.samplers.flowdps import FlowDPS
from invsolve.samplers.fpssmc import FPSSMC
from invsolve.samplers.ilvr import ILVR
from invsolve.samplers.langevin import Langevin
from invsolve.samplers.lgd import LGD
from invsolve.samplers.mcg import MCG
from invsolve.samplers.mcgdiff import MCGdiff
from invsolve.samplers.mmps import MMPS
from invsolve.samplers.otode import OTODE
from invsolve.samplers.pigdm import PiGDM
from invsolve.samplers.pmrf import PMRF
from invsolve.samplers.pnpdm import PnPDM
from invsolve.samplers.pnpflow import PnPFlow
from invsolve.samplers.reddiff import REDDiff
from invsolve.samplers.rsd import RSD
from invsolve.samplers.scg import SCG
from invsolve.samplers.scoresde import ScoreSDE
from invsolve.samplers.smc import Cloud
from invsolve.samplers.tds import TDS
from invsolve.samplers.tmpd import TMPD
from invsolve.samplers.twistedmmps import TwistedMMPS

__all__ = [
    "DAPS",
    "DDNM",
    "DDRM",
    "DDS",
    "DPS",
    "FLAIR",
    "FPSSMC",
    "ILVR",
    "LGD",
    "MCG",
    "MMPS",
    "OTODE",
    "PMRF",
    "RSD",
    "SCG",
    "TDS",
    "TMPD",
    "Callback",
    "Cloud",
    "DFlow",
    "DiffPIR",
    "DivergenceError",
    "EnKG",
    "FlowChef",
    "FlowDPS",
    "Langevin",
    "MCGdiff",
    "PiGDM",
    "PnPDM",
    "PnPFlow",
    "REDDiff",
    "Sampler",
    "ScoreSDE",
    "TwistedMMPS",
]
