"""Local search over assignments: a device comes, two change places, one leaves; and kicks."""

import numpy as np

from flower_bfl.controller.allocation import Allocation, Situation, Slots, allocate
from flower_bfl.controller.assignment import first_prices, link_costs, prices_of
from flower_bfl.network.settings import Array

_LOOK_STEPS = 2
_STEPS = {"sum": 10, "makespan": 40}  # to compare the best of them; a sharp norm takes more
_LAST_STEPS = 300
_WORTH = 8  # neighbours
_PROMISING = 4  # devices a slot
_LEAST_GAIN = 1e-7  # relative
_KICKED = (4, 9)  # slots, from and below
_JOINING = 0.3  # chance per slot of a device that had none
_NOT_MUCH_WORSE = 0.005


def neighbours(in_slot: Slots, promising: Slots) -> Slots:
    """Assignments one move away, (K, M·G), from (M·G,); promising: who to try in each slot, (M·G, any)."""
    slot, device = np.repeat(np.arange(len(in_slot)), promising.shape[1]), promising.ravel()
    is_new = ~np.isin(device, in_slot)
    place = np.repeat(in_slot[None], int(is_new.sum()), axis=0)
    place[np.arange(len(place)), slot[is_new]] = device[is_new]
    one, other = np.triu_indices(len(in_slot), 1)
    differ = in_slot[one] != in_slot[other]
    one, other = one[differ], other[differ]
    swap = np.repeat(in_slot[None], len(one), axis=0)
    rows = np.arange(len(swap))
    swap[rows, one], swap[rows, other] = in_slot[other], in_slot[one]
    taken = np.flatnonzero(in_slot >= 0)
    leave = np.repeat(in_slot[None], len(taken), axis=0)
    leave[np.arange(len(leave)), taken] = -1
    return np.concatenate([place, swap, leave])


def promising_devices(situation: Situation, made: Allocation, count: int) -> Slots:
    """The devices that would save most in each slot, as far as the marginal prices tell; (M·G, count)."""
    costs_s = link_costs(situation, prices_of(situation, made, first_prices(situation)))
    costs_s[made.in_slot[0][made.in_slot[0] >= 0]] = np.inf
    count = min(count, len(costs_s))
    return np.argpartition(costs_s, count - 1, axis=0)[:count].T


def carried_over(situation: Situation, made: Allocation, in_slot: Slots) -> tuple[Array, Array]:
    """Where to start the allocation of neighbours: as before by slot, W/G and most power for a new device."""
    network = situation.network
    before = made.in_slot[0].reshape(network.edge_servers, network.sub_channels)
    free = before < 0
    power_w = np.where(free, network.radio.power_w[1], made.power_w[0])
    bandwidth_hz = np.where(free, network.radio.bandwidth_hz / network.sub_channels, made.bandwidth_hz[0])
    shape = (len(in_slot), *before.shape)
    return np.broadcast_to(power_w, shape), np.broadcast_to(bandwidth_hz, shape)


def descend(situation: Situation, made: Allocation) -> Allocation:
    """Take the best neighbour as long as it is better; `made` and the result have one assignment."""
    while True:
        around = neighbours(made.in_slot[0], promising_devices(situation, made, _PROMISING))
        seen = allocate(situation, around, carried_over(situation, made, around), _LOOK_STEPS)
        worth = np.argsort(seen.promise, kind="stable")[:_WORTH]
        near = _settle(situation, around[worth], (seen.power_w[worth], seen.bandwidth_hz[worth]))
        first = int(np.argmin(near.score))
        if not near.score[first] < made.score[0] * (1 - _LEAST_GAIN):
            return made
        made = near[first : first + 1]


def _settle(situation: Situation, in_slot: Slots, start: tuple[Array, Array]) -> Allocation:
    return allocate(situation, in_slot, start, _STEPS[situation.network.objective])


def kicked(in_slot: Slots, devices: int, rng: np.random.Generator) -> Slots:
    """The assignment with 4 to 8 slots permuted; now and then a device without a slot gets one of them."""
    size = min(int(rng.integers(*_KICKED)), len(in_slot))
    where = rng.choice(len(in_slot), size, replace=False)
    without = np.setdiff1d(np.arange(devices), in_slot)
    joining = rng.permutation(without)[: rng.binomial(size, _JOINING)]
    result = in_slot.copy()
    result[where] = rng.permutation(np.concatenate([in_slot[where], joining]))[:size]
    return result


def search(situation: Situation, made: Allocation, kicks: int, rng: np.random.Generator) -> Allocation:
    """Descend, then kick and descend again, going on from what is not much worse; the best that was seen."""
    first = best = here = descend(situation, made)
    for _ in range(kicks):
        start = kicked(here.in_slot[0], situation.network.devices, rng)[None]
        found = descend(situation, _settle(situation, start, carried_over(situation, here, start)))
        if found.score[0] < here.score[0] * (1 + _NOT_MUCH_WORSE):
            here = found
        if found.score[0] < best.score[0]:
            best = found
    # The last digits, which the search has no time for; and seconds count now, no smooth form of them.
    ends = [
        allocate(situation, one.in_slot, (one.power_w, one.bandwidth_hz), _LAST_STEPS)
        for one in (best, first)
    ]
    return min(ends, key=lambda end: float(end.learning_s[0]))
