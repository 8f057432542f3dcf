"""The edge network: who is linked to whom."""

from flower_bfl.network.topology import Graph as Graph
from flower_bfl.network.topology import GraphName as GraphName
from flower_bfl.network.topology import Mixing as Mixing
from flower_bfl.network.topology import MixingName as MixingName
from flower_bfl.network.topology import edge_graph as edge_graph
from flower_bfl.network.topology import laplacian_mixing as laplacian_mixing
from flower_bfl.network.topology import metropolis_mixing as metropolis_mixing
from flower_bfl.network.topology import mixing_matrix as mixing_matrix
from flower_bfl.network.topology import spectral_radius as spectral_radius
from flower_bfl.network.topology import without as without
