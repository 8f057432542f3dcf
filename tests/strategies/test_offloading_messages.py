"""What goes between server and nodes: data only when decided, settings only to whom they concern."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from field import (
    Field,
    Scripted,
    arrived,
    either,
    failing,
    fit,
    least_squares_app,
    new_points,
    plain_app,
    roomy,
    silent,
    start_weights,
    when,
)
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp

from flower_bfl import ConsensusBFL, MemoryLedger
from flower_bfl.controller import AssignmentController
from flower_bfl.learning.offloading import offloadable
from flower_bfl.network import NetworkConfig
from flower_bfl.types import DeviceReport

EVERYBODY = [0, 0, 0, 1, 1, 1]
SOME = [1, None, 0, None, 1, None]


def run(grid, *script, rounds=1, servers=2, devices=6, controller=None, **arguments):
    controller = controller or Scripted(roomy(devices, servers), *script)
    arguments = {"wait_for_nodes_s": 0.1, "fraction_evaluate": 0.0} | arguments
    strategy = ConsensusBFL(edge_servers=servers, controller=controller, **arguments)
    strategy.start(grid, start_weights(), num_rounds=rounds)
    return strategy


def field(app=None, nodes=8, **arguments):
    return Field([app or least_squares_app(new_points)] * nodes, **arguments)


# -- data ------------------------------------------------------------------------------------------------


def test_data_travel_only_when_decided_and_only_where():
    grid = field()
    run(grid, SOME, [None] * 6, EVERYBODY, rounds=3)
    kinds = {place: Counter(grid.kinds(place)) for place in range(8)}
    assert all(kinds[place]["query.report"] == 3 for place in range(8))
    #                 offloads in round 1      nobody in 2        everybody in 3
    for device in range(6):
        sends = (SOME[device] is not None) + 1
        assert (kinds[device]["query.offload"], kinds[device]["train"]) == (sends, 3 - sends)
        assert kinds[device]["train.edge"] == 0
    for server in (6, 7):
        assert kinds[server] == {"query.report": 3, "train.edge": 2}
    with_data = [message for _, message in grid.sent if "flower-bfl-data" in message.content]
    assert {message.metadata.message_type for message in with_data} == {"train.edge"}
    carried = {
        "query.report": {"config"},
        "query.offload": {"config"},
        "train": {"arrays", "config"},
        "train.edge": {"arrays", "config", "flower-bfl-data"},
    }
    for _, message in grid.sent:
        assert set(message.content) == carried[message.metadata.message_type]


def test_an_edge_server_gets_the_union_in_the_order_of_devices():
    grid = field()
    run(grid, SOME)
    unions = {
        place: message.content
        for place, message in grid.sent
        if message.metadata.message_type == "train.edge"
    }
    for place, devices in ((6, [2]), (7, [0, 4])):
        assert list(unions[place]["config"]["devices"]) == devices
        sent = {name: array.numpy() for name, array in unions[place]["flower-bfl-data"].items()}
        expected = {name: np.concatenate([arrived(n, 1)[name] for n in devices]) for name in ("x", "y")}
        assert list(sent) == ["x", "y"]
        for name in sent:
            np.testing.assert_array_equal(sent[name], expected[name])
            assert sent[name].dtype == np.float32


def test_the_strategy_keeps_no_data_while_edge_servers_train():
    held = []
    strategy = ConsensusBFL(edge_servers=2, controller=Scripted(roomy(6, 2), EVERYBODY))

    def look(message):
        held.extend(one.arrays for one in strategy._controlled.now.sets.values())
        raise LookupError

    grid = field(faults={6: when("train.edge", look)})
    strategy.start(grid, start_weights(), num_rounds=1)
    assert held == [{}] * 6


# -- settings --------------------------------------------------------------------------------------------


def test_everybody_gets_its_own_settings_and_the_app_its_config():
    grid = field()
    network = roomy(6, 2)
    controller = Scripted(network, SOME, EVERYBODY)
    strategy = ConsensusBFL(edge_servers=2, controller=controller)
    config = ConfigRecord({"batch": 25, "name": "mine"})
    strategy.start(grid, start_weights(), num_rounds=2, train_config=config)
    assert dict(config) == {"batch": 25, "name": "mine"}
    for k, servers in ((1, SOME), (2, EVERYBODY)):
        app = {"batch": 25, "name": "mine", "server-round": k}
        decided = controller.decide.__func__(Scripted(network, servers), controller.seen[k - 1])
        homes = controller.seen[k - 1].gain.max(axis=-1).argmax(axis=-1)
        told = grid.told("train", k) | grid.told("query.offload", k)
        assert sorted(told) == list(range(6))
        for n, server in enumerate(servers):
            expected = app | {"offload": server is not None, "hash-rate": decided.hash_rate[n]}
            if server is None:
                expected |= {"edge-server": homes[n], "cpu-hz": decided.cpu_hz[n]}
            else:
                expected |= {
                    "edge-server": server, "sub-channel": decided.slot[n] % 6, "power-w": decided.power_w[n],
                    "bandwidth-hz": decided.bandwidth_hz[n], "most-bytes": 2**28,
                }  # fmt: skip
            assert dict(told[n]) == expected
        edge = grid.told("train.edge", k)
        for server in (0, 1):
            devices = [n for n in range(6) if servers[n] == server]
            assert dict(edge[6 + server]) == app | {"edge-server": server, "cpu-hz": 5e9, "devices": devices}
        assert all(dict(each) == app | {"edge-servers": 2} for each in grid.told("query.report", k).values())


def test_no_two_messages_share_a_config():
    grid = field()
    run(grid, SOME, rounds=2)
    configs = [message.content["config"] for _, message in grid.sent]
    assert len({id(config) for config in configs if "offload" in config or "devices" in config}) == 2 * 8
    reports = [m.content["config"] for _, m in grid.sent if m.metadata.message_type == "query.report"]
    assert len({id(config) for config in reports}) == 2 * 8


def test_a_client_that_writes_into_its_config_writes_into_no_others():
    app = ClientApp()

    @offloadable(app, new_points)
    def train(message, context, data):
        assert "mark" not in message.content["config"]
        message.content["config"]["mark"] = 1
        return fit(message, context, data)

    assert not run(field(app), SOME, rounds=3).reports[-1].left_out


def test_a_config_may_have_another_name():
    """`configrecord_key` holds for the questions to clients too, and for what data sources see."""

    def samples(message, context):
        return arrived(int(context.node_config["partition-id"]), message.content["settings"]["server-round"])

    app = ClientApp()

    @offloadable(app, samples)
    def train(message, context, data):
        message.content["config"] = message.content["settings"]
        return fit(message, context, data)

    grid = Field([app] * 8)
    strategy = run(grid, EVERYBODY, SOME, rounds=2, configrecord_key="settings")
    assert [report.server_data for report in strategy.reports[1:]] == [((0, 1, 2), (3, 4, 5)), ((2,), (0, 4))]


# -- who takes part --------------------------------------------------------------------------------------


def test_plain_apps_are_asked_once_and_always_train_alone():
    apps = (
        [least_squares_app(new_points)] * 3
        + [plain_app(new_points)] * 3
        + [least_squares_app(new_points)] * 2
    )
    grid = Field(apps)
    strategy = run(grid, [0, 1, 1], rounds=3)
    for place in (3, 4, 5):
        assert Counter(grid.kinds(place)) == {"query.report": 1, "train": 3}
        assert all(not config["offload"] for k in (1, 2, 3) if (config := grid.told("train", k)[place]))
    for report in strategy.reports[1:]:
        assert report.server_data == ((0,), (1, 2))
        assert sorted(n for devices in report.server_devices for n in devices) == [3, 4, 5]
        assert not report.left_out


def test_a_device_that_reports_late_gets_its_index_from_whoever_had_it_meanwhile():
    apps = [least_squares_app(new_points)] * 2 + [plain_app(new_points, named=False)]
    grid = Field(
        apps + [least_squares_app(new_points)] * 2, faults={0: when("query.report", silent, rounds=[1])}
    )
    strategy = run(grid, [1], [0, 1], rounds=3, devices=3)
    seen = [(sum(report.server_devices, ()), report.server_data) for report in strategy.reports[1:]]
    assert seen == [((0,), ((), (1,))), ((2,), ((0,), (1,))), ((2,), ((0,), (1,)))]
    assert sorted(config["offload"] for config in grid.told("train", 3).values()) == [False]


@pytest.mark.parametrize("named", [True, False])
def test_a_federation_of_plain_apps_alone_learns_as_without_a_controller(named):
    apps = [plain_app(new_points, named=named)] * 5
    association = [0, 1, 0, 1, 0]
    models = []
    for controller in (None, AssignmentController(roomy(5, 2))):
        grid = Field(apps)
        strategy = ConsensusBFL(
            edge_servers=2, controller=controller, association=association, wait_for_nodes_s=0.1
        )
        models.append(strategy.start(grid, start_weights(), num_rounds=3).arrays["w"].numpy())
        assert not any(report.left_out for report in strategy.reports)
    np.testing.assert_array_equal(*models)


def test_devices_that_do_not_consent_keep_their_data():
    def report(message, context):
        return DeviceReport(may_offload=int(context.node_config["partition-id"]) != 1)

    configs = {2: {"may-offload": False}, 3: {"may-offload": "false"}, 4: {"may-offload": True}}
    grid = field(least_squares_app(new_points, report=report), configs=configs)
    strategy = run(grid, [0, 0, 1], rounds=2)  # it is shown three devices
    assert strategy.reports[2].server_data == ((0, 4), (5,))
    for place in (1, 2, 3):
        assert Counter(grid.kinds(place)) == {"query.report": 2, "train": 2}


def test_consent_that_is_withdrawn_before_the_data_are_asked_for_holds():
    def report(message, context):
        return DeviceReport(may_offload=message.metadata.message_type != "query.offload")

    strategy = run(field(least_squares_app(new_points, report=report)), EVERYBODY)
    assert strategy.reports[1].server_data == ((), ())
    assert [one.who for one in strategy.reports[1].kept_local] == [f"device {n}" for n in range(6)]
    assert "must stay where they are" in strategy.reports[1].kept_local[0].reason
    assert strategy.reports[1].devices == 6


def test_roles_may_be_given_by_node_configs():
    configs = {0: {"role": "edge-server", "index": 1}, 7: {"role": "edge-server", "index": 0}}
    configs |= {place: {"role": "device", "index": 6 - place} for place in range(1, 7)}
    grid = field(configs=configs)
    strategy = run(grid, EVERYBODY)
    assert strategy.reports[1].server_data == ((0, 1, 2), (3, 4, 5))
    (union,) = [m.content for place, m in grid.sent if (place, m.metadata.message_type) == (0, "train.edge")]
    # devices 3, 4, 5 are the partitions 3, 2, 1
    expected = np.concatenate([arrived(place, 1)["y"] for place in (3, 2, 1)])
    np.testing.assert_array_equal(union["flower-bfl-data"]["y"].numpy(), expected)


def test_evaluation_is_of_devices_only_also_when_an_edge_server_is_silent():
    grid = field(faults={7: when("query.report", silent, rounds=[2])})
    run(grid, SOME, rounds=3, fraction_evaluate=1.0)
    assert [grid.kinds(place).count("evaluate") for place in range(8)] == [3] * 6 + [0, 0]


def test_nodes_of_which_nobody_knows_what_they_are_do_not_evaluate():
    twins = {6: {"role": "edge-server", "index": 0}, 7: {"role": "edge-server", "index": 0}}
    grid = field(configs=twins)
    run(grid, [None] * 6, fraction_evaluate=1.0)
    assert [grid.kinds(place).count("evaluate") for place in range(8)] == [1] * 6 + [0, 0]


def test_a_fraction_of_devices_with_all_edge_servers():
    grid = field(nodes=12)
    network = roomy(10, 2)
    strategy = run(
        grid, controller=AssignmentController(network), rounds=3, fraction_train=0.5, min_train_nodes=2
    )
    for k, report in enumerate(strategy.reports[1:], start=1):
        asked = {*grid.told("train", k), *grid.told("query.offload", k)}
        assert len(asked) == report.devices == 5 and max(asked) < 10
        assert len(grid.told("query.report", k)) == 12 and grid.told("train.edge", k)
        assert not report.fallback and not report.left_out


@pytest.mark.parametrize(("of_network", "there"), [(9, 6), (4, 6)], ids=["fewer", "more"])
def test_fewer_or_more_devices_than_the_network_has(of_network, there):
    grid = field()
    strategy = run(grid, [0, 1, 0, 1] + [None] * (min(of_network, there) - 4), devices=of_network, rounds=2)
    for k, report in enumerate(strategy.reports[1:], start=1):
        assert (report.devices, report.server_data) == (6, ((0, 2), (1, 3)))
        beyond = [n for n in (4, 5) if "offload" not in grid.told("train", k)[n]]
        assert beyond == ([] if of_network > there else [4, 5])
        assert not report.fallback


def test_a_local_device_is_told_the_edge_server_that_it_is_associated_with():
    grid = field()
    association = [1, 0, 0, 1, 1, 0]
    strategy = run(grid, SOME, association=association)
    told = grid.told("train", 1)
    assert {n: config["edge-server"] for n, config in told.items()} == {n: association[n] for n in told}
    assert strategy.reports[1].server_devices == ((1, 5), (3,))
    assert strategy.reports[1].server_data == ((2,), (0, 4))  # data go where they were decided to go


# -- data that come and go, and what devices say of themselves -------------------------------------------


def test_data_that_arrive_between_rounds_count_from_then_on():
    strategy = run(field(), SOME, EVERYBODY, rounds=4)
    for k, report in enumerate(strategy.reports[1:], start=1):
        assert report.samples == sum(len(arrived(n, k)["y"]) for n in range(6))


def test_a_device_without_samples_sits_the_round_out_and_comes_back():
    def samples(message, context):
        device, k = int(context.node_config["partition-id"]), message.content["config"]["server-round"]
        data = arrived(device, k)
        return {name: array[:0] for name, array in data.items()} if (device, k) == (2, 2) else data

    grid = field(least_squares_app(samples))
    strategy = run(grid, EVERYBODY, [0, 0, 1, 1, 1], EVERYBODY, rounds=3)
    (left_out,) = strategy.reports[2].left_out
    assert (left_out.who, left_out.reason) == ("device 2", "it has no samples this round")
    assert [report.server_data for report in strategy.reports[1:]] == [
        ((0, 1, 2), (3, 4, 5)), ((0, 1), (3, 4, 5)), ((0, 1, 2), (3, 4, 5))
    ]  # fmt: skip
    assert strategy.reports[2].samples == sum(len(arrived(n, 2)["y"]) for n in (0, 1, 3, 4, 5))
    assert Counter(grid.kinds(2))["query.offload"] == 2 and "train" not in grid.kinds(2)


def test_the_controller_sees_what_devices_say_and_what_is_drawn_otherwise():
    told = DeviceReport(work_cycles=8e8, cpu_hz=1.5e9, energy_slack_j=7.0, gain_db=(-80.0, -100.0))
    network = NetworkConfig(6, 2, 3)

    def report(message, context):
        device = int(context.node_config["partition-id"])
        return told if device == 3 else DeviceReport(cpu_hz=1e9) if device == 5 else DeviceReport()

    def states(**offloading):
        controller = Scripted(network, [None] * 6)
        run(field(least_squares_app(new_points, **offloading)), controller=controller, rounds=2)
        return controller.seen

    for k, (said, drawn) in enumerate(zip(states(report=report), states(), strict=True), start=1):
        sizes = [8 * sum(array.nbytes for array in arrived(n, k).values()) for n in range(6)]
        np.testing.assert_array_equal(said.data_bits, sizes)
        np.testing.assert_array_equal(drawn.data_bits, sizes)
        assert (said.work_cycles[3], said.cpu_hz[3], said.energy_slack_j[3]) == (8e8, 1.5e9, 7.0)
        np.testing.assert_allclose(said.gain[3], [[1e-8] * 3, [1e-10] * 3], rtol=1e-6)
        assert said.cpu_hz[5] == 1e9
        for name in ("work_cycles", "energy_slack_j", "gain", "cpu_hz"):
            for n in (0, 1, 2, 4, 5) if name != "cpu_hz" else (0, 1, 2, 4):
                np.testing.assert_array_equal(getattr(said, name)[n], getattr(drawn, name)[n])


# -- the same again --------------------------------------------------------------------------------------


def unsteady(message, context):
    """Samples that are wrong for one device in round 2, and missing for another in round 3."""
    device, k = int(context.node_config["partition-id"]), message.content["config"]["server-round"]
    data = arrived(device, k)
    if (device, k) == (4, 2):
        data["x"] = data["x"][:, :3]
    return {name: array[:0] for name, array in data.items()} if (device, k) == (1, 3) else data


def test_a_run_does_not_depend_on_node_ids_or_on_which_reply_comes_first():
    def one(seed):
        fails = when("train", failing("no memory"), rounds=[2])
        is_silent = when("train", silent, rounds=[4])
        faults = dict.fromkeys((0, 2), either(fails, is_silent))
        faults |= dict.fromkeys((3, 5), when("query.report", silent, rounds=[3]))
        faults[6] = when("train.edge", failing(code=5), rounds=[4])
        apps = [least_squares_app(unsteady)] * 8
        apps[1] = plain_app(unsteady)
        ledger = MemoryLedger()
        # devices 0, 2, 3, 4, 5; in round 3 without 3 and 5
        script = (
            [0, 1, 1, 0, None],
            [None, None, 1, 0, 0],
            [0, 1, None],
            [None, None, 0, 1, 1],
            [0, 1, 0, 1, 0],
        )
        controller = Scripted(roomy(6, 2), *script)
        strategy = ConsensusBFL(edge_servers=2, controller=controller, ledger=ledger, seed=3)
        strategy.start(Field(apps, seed=seed, faults=faults), start_weights(), num_rounds=5)
        timeless = {
            name: 0 for name in ("report_seconds", "decide_seconds", "offload_seconds", "train_seconds")
        } | {"wait_seconds": 0, "aggregate_seconds": 0, "ledger": None}
        return list(ledger.entries()), [replace(report, **timeless) for report in strategy.reports]

    entries, reports = one(1)
    for seed in (2, 3, 4):
        assert one(seed) == (entries, reports)
    assert any(report.left_out for report in reports) and any(report.kept_local for report in reports)
    assert len({report.head for report in reports}) == 6
