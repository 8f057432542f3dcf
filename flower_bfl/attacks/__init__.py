"""Attacks for what-if runs: compromised edge servers, poisoned devices."""

from flower_bfl.attacks.base import Attack as Attack
from flower_bfl.attacks.base import Falsification as Falsification
from flower_bfl.attacks.base import Turn as Turn
from flower_bfl.attacks.behaviour import Equivocation as Equivocation
from flower_bfl.attacks.behaviour import FalseAccusation as FalseAccusation
from flower_bfl.attacks.behaviour import Silence as Silence
from flower_bfl.attacks.data import Backdoor as Backdoor
from flower_bfl.attacks.data import LabelFlip as LabelFlip
from flower_bfl.attacks.data import Poisoning as Poisoning
from flower_bfl.attacks.data import poisoned as poisoned
from flower_bfl.attacks.vectors import ALittleIsEnough as ALittleIsEnough
from flower_bfl.attacks.vectors import GaussianNoise as GaussianNoise
from flower_bfl.attacks.vectors import InnerProduct as InnerProduct
from flower_bfl.attacks.vectors import OldValue as OldValue
from flower_bfl.attacks.vectors import Scaling as Scaling
from flower_bfl.attacks.vectors import SignFlip as SignFlip
