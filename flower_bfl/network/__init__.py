"""The edge network: who is linked to whom, what a round's channels and tasks are, what a decision costs."""

from flower_bfl.network.feasible import Violation as Violation
from flower_bfl.network.feasible import is_feasible as is_feasible
from flower_bfl.network.feasible import project as project
from flower_bfl.network.feasible import violations as violations
from flower_bfl.network.pricing import Price as Price
from flower_bfl.network.pricing import price as price
from flower_bfl.network.process import NetworkProcess as NetworkProcess
from flower_bfl.network.process import draw_states as draw_states
from flower_bfl.network.settings import Blocks as Blocks
from flower_bfl.network.settings import NetworkConfig as NetworkConfig
from flower_bfl.network.settings import Radio as Radio
from flower_bfl.network.settings import Tasks as Tasks
from flower_bfl.network.state import LOCAL as LOCAL
from flower_bfl.network.state import Decision as Decision
from flower_bfl.network.state import NetworkState as NetworkState
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
