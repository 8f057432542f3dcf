"""Networks, states and decisions for hypothesis."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from flower_bfl.network import LOCAL, Blocks, Decision, NetworkConfig, NetworkState, Radio, Tasks

EXTREMES = [0.0, -0.0, 5e-324, 1e-300, 1e-12, 1e12, 1.7e308, np.inf, -np.inf, -1.7e308, -1.0]

batches = st.sampled_from([(), (1,), (3,), (2, 2)])


@st.composite
def networks(draw):
    """Any options; the sizes are small, and so is the hash budget at times."""
    devices, servers = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    speeds = draw(st.sampled_from(["one", "each"]))
    budget = draw(st.sampled_from([1.0, 1.5, 4.0, 100.0])) * devices * 0.1e12
    return NetworkConfig(
        devices=devices,
        edge_servers=servers,
        sub_channels=draw(st.integers(1, 3)),
        objective=draw(st.sampled_from(["sum", "makespan"])),
        edge_cpu_hz=5e9 if speeds == "one" else tuple(1e9 * (1 + m) for m in range(servers)),
        p2p_rounds=draw(st.integers(0, 6)),
        model_bits=draw(st.sampled_from([40e3, 32 * 21_840.0])),
        radio=Radio(
            bandwidth_hz=draw(st.sampled_from([1e3, 20e6])),
            sharing=draw(st.sampled_from(["shared", "per_device"])),
            power_dbm=draw(st.sampled_from([(10.0, 30.0), (20.0, 20.0)])),
            interference=draw(st.booleans()),
        ),
        tasks=Tasks(energy_slack_j=draw(st.sampled_from([(2.0, 10.0), (1e-3, 1e-2)]))),
        blocks=Blocks(
            total=draw(st.sampled_from(["sum", "fastest", "race"])),
            total_hash_rate=budget,
            propagation_s=draw(st.sampled_from([0.0, 0.005])),
        ),
    )


@dataclass(frozen=True)
class Drawn:
    """Numpy draws the values: hypothesis would need thousands of choices for them."""

    network: NetworkConfig
    rng: np.random.Generator
    batch: tuple[int, ...]

    def spread(self, pair, *more):
        """Evenly over the orders of magnitude from the first to the second of a pair; (*batch, N, *more)."""
        least, most = np.log(pair)
        return np.exp(self.rng.uniform(least, most, (*self.batch, self.network.devices, *more)))

    def state(self, dtype=np.float64):
        """Gains from next to nothing to a metre away."""
        network, tasks = self.network, self.network.tasks
        gain = self.spread((1e-25, 1e-4), network.edge_servers, network.sub_channels)
        return NetworkState(
            self.spread(tasks.data_bits),
            self.spread(tasks.work_cycles),
            self.spread(tasks.cpu_hz),
            self.spread(tasks.energy_slack_j),
            gain.astype(dtype),
        )

    def slots(self):
        """No slot twice; about half of the devices stay local, more if the slots do not suffice."""
        network = self.network
        shape = (*self.batch, network.devices)
        places = np.arange(network.slots + network.devices)
        order = self.rng.permuted(np.broadcast_to(places, (*self.batch, places.size)), axis=-1)
        first = order[..., : network.devices]
        return np.where((first < network.slots) & (self.rng.random(shape) < 0.8), first, LOCAL)

    def decision(self):
        """Keeps (28b) to (28g), not always (28h)."""
        network = self.network
        blocks, radio = network.blocks, network.radio
        slot = self.slots()
        offloads = slot >= 0
        bandwidth_hz = self.spread((1e-4, 1.0)) * radio.bandwidth_hz
        if radio.sharing == "shared":
            bandwidth_hz = bandwidth_hz / network.sub_channels
        above = self.spread((1e-3, 1.0)) * (blocks.hash_rate[1] - blocks.hash_rate[0])
        left = blocks.total_hash_rate - network.devices * blocks.hash_rate[0]
        above *= np.minimum(1.0, left / above.sum(axis=-1, keepdims=True))
        return Decision(
            slot=slot,
            power_w=np.where(offloads, self.spread(radio.power_w), 0.0),
            bandwidth_hz=np.where(offloads, bandwidth_hz, 0.0),
            cpu_hz=np.where(offloads, 0.0, self.spread((1e-6, 0.2e9))),
            hash_rate=blocks.hash_rate[0] + above,
        )

    def anything(self):
        """Slots that may not be there or are taken, and resources of any size and sign, also infinite."""
        network, rng = self.network, self.rng
        shape = (*self.batch, network.devices)
        slot = rng.integers(-2, network.slots + 1, shape)
        slot = np.where(rng.random(shape) < 0.1, rng.choice([-(2**63), -7, 2**63 - 1], shape), slot)
        tops = (network.radio.power_w[1], network.radio.bandwidth_hz, 2e9, network.blocks.hash_rate[1])

        def resource(top):
            usual = top * rng.uniform(0, 1.2, shape)
            return np.where(rng.random(shape) < 0.4, rng.choice(EXTREMES, shape), usual)

        return Decision(slot, *(resource(top) for top in tops))


@st.composite
def draws(draw):
    """A network and what to draw for it from."""
    return Drawn(draw(networks()), np.random.default_rng(draw(st.integers(0, 2**32))), draw(batches))
