"""Flower strategies with several edge servers, and the pure functions of a round."""

from flower_bfl.strategies.consensus_bfl import ConsensusBFL as ConsensusBFL
from flower_bfl.strategies.independent_servers import IndependentServers as IndependentServers
