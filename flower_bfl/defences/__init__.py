"""Defences: robust rules instead of the mean, and who is suspected."""

from flower_bfl.defences._described import described as described
from flower_bfl.defences._described import from_description as from_description
from flower_bfl.defences.deviation import Deviation as Deviation
from flower_bfl.defences.replay import Replay as Replay
from flower_bfl.defences.robust import CentredClipping as CentredClipping
from flower_bfl.defences.robust import Krum as Krum
from flower_bfl.defences.robust import Median as Median
from flower_bfl.defences.robust import MultiKrum as MultiKrum
from flower_bfl.defences.robust import TrimmedMean as TrimmedMean

Defence = Replay | Deviation
"""Finds who is not to be trusted: `ConsensusBFL(defence=...)`."""

EdgeRule = Median | TrimmedMean | Krum | MultiKrum | CentredClipping
"""Takes the mean's place at the edge servers: `ConsensusBFL(edge_rule=...)`."""
