"""Runs of which everything is checked that holds whatever happens: see `checked_run`."""

import numpy as np
from algorithm_1 import Constants, Round, algorithm_1, laplacian_weights, links_of
from field import (
    EDGE_STEPS,
    RATE,
    Field,
    Sending,
    arrived,
    least_squares_app,
    local_steps,
    new_points,
    numbered,
    roomy,
    start_weights,
)

from flower_bfl import ConsensusBFL, EvmLedger, Mining
from flower_bfl.audit import audit
from flower_bfl.chain_adapter import Kind
from flower_bfl.chain_adapter.records import read_report

DEVICES, SERVERS = 5, 2
SENT_TO = {0: 0, 1: 0, 2: 1}  # device 0 and 1 to edge server 0, device 2 to 1; 3 and 4 train alone
EDGE_0, EDGE_1 = DEVICES, DEVICES + 1  # partitions


def checked_run(
    folder, *, controller=None, faults=None, rounds=3, gone=(), data=new_points, mods=None, **arguments
):
    """A run of which everything that is recorded follows, and everybody is accounted for in every round."""
    app = least_squares_app(data, report=numbered, mods=mods)
    grid = Field([app] * (DEVICES + SERVERS), faults=faults)
    grid.gone |= set(gone)
    strategy = ConsensusBFL(
        edge_servers=SERVERS, p2p_rounds=1, ledger=EvmLedger(folder / "chain"), run_folder=folder,
        mining=Mining(difficulty_bits=1), controller=controller or Sending(roomy(DEVICES, SERVERS), SENT_TO),
        **{"wait_for_nodes_s": 0.1, "fraction_evaluate": 0.0} | arguments,
    )  # fmt: skip
    models = []
    strategy.start(
        grid, start_weights(), rounds, evaluate_fn=lambda k, arrays: models.append(arrays["w"].numpy())
    )
    assert len(strategy.reports) == rounds + 1
    for report in strategy.reports[1:]:
        everybody_is_accounted_for(report)
    if not strategy.outages:  # the paper knows none
        np.testing.assert_allclose(models[1:], by_the_paper(strategy.reports[1:]), rtol=2e-5, atol=2e-6)
    found = audit(folder)
    assert (found.finding, found.checked.models_recomputed) == (None, rounds)
    recorded = {
        entry.round: tuple(read_report(entry.payload)[0])
        for entry in EvmLedger(folder / "chain").entries()
        if entry.kind is Kind.REPORT
    }
    assert recorded == {one.round: one.left_out for one in strategy.reports if one.left_out or one.down}
    return strategy, grid


def everybody_is_accounted_for(report):
    trained = [n for group in (*report.server_devices, *report.server_data) for n in group]
    lost = [one.who for one in report.left_out if not one.who.startswith("edge server")]
    assert len(trained) == report.devices
    named = [*(f"device {n}" for n in trained), *(who for who in lost if who.startswith("device"))]
    assert len(named) == len({*named})
    assert len(trained) + len(lost) == DEVICES
    assert {one.who for one in report.kept_local} <= {
        f"device {n}" for group in report.server_devices for n in group
    }


def by_the_paper(reports):
    """The models that Algorithm 1 gives for those who took part by the reports."""
    w, models = np.zeros(4), []
    constants = Constants(
        [local_steps(n) for n in range(DEVICES)], [EDGE_STEPS, EDGE_STEPS + 1], RATE,
        laplacian_weights(links_of("complete", 2), 2, 0.45), 1,
    )  # fmt: skip
    for report in reports:
        sent_to = {n: m for m in range(SERVERS) for n in report.server_data[m]} if report.devices else {}
        homes = {n: m for m in range(SERVERS) for n in report.server_devices[m]} if report.devices else {}
        if report.devices:
            round_ = Round(
                data=[
                    tuple(arrived(n, report.round).values()) if n in sent_to or n in homes else None
                    for n in range(DEVICES)
                ],
                offloads_to=[sent_to.get(n) for n in range(DEVICES)],
                homes=[homes.get(n, 0) for n in range(DEVICES)],
                leader=report.leader,
            )
            (w,) = algorithm_1(w, [round_], constants)
        models.append(w)
    return models


def usual(report):
    """What there is in a round in which nothing goes wrong."""
    return report.server_data == ((0, 1), (2,)) and not (report.left_out or report.kept_local)
