"""Whether attacks and defences go with a run."""

from collections.abc import Iterable, Sequence

from flower_bfl.attacks import Attack, Falsification, Poisoning
from flower_bfl.config import Consensus
from flower_bfl.defences import Defence, Deviation, EdgeRule, Replay
from flower_bfl.errors import ConfigError


def checked_attacks(attacks: Attack | Iterable[Attack], consensus: Consensus) -> tuple[Attack, ...]:
    """The attacks; raises ConfigError unless they are by edge servers and in steps of the run."""
    if isinstance(attacks, Attack):
        attacks = [attacks]
    if not isinstance(attacks, Iterable):
        raise ConfigError(f"`attacks` must be attacks of flower_bfl.attacks, got {attacks!r:.80}")
    attacks = tuple(attacks)
    servers, last = consensus.edge_servers, consensus.most_steps
    for attack in attacks:
        if not isinstance(attack, Attack) or type(attack) in (Attack, Falsification, Poisoning):
            raise ConfigError(f"`attacks` must be attacks of flower_bfl.attacks, got {attack!r:.80}")
        for server in (attack.server, getattr(attack, "accused", None)):
            if server is not None and server >= servers:
                raise ConfigError(f"`attacks` must name edge servers of 0..{servers - 1}, got {attack}")
        if attack.server is not None and isinstance(attack.p2p_step, int) and attack.p2p_step > last:
            raise ConfigError(f"`attacks` must act in steps 0..{last}, 'model' or 'training', got {attack}")
    return attacks


def checked_edge_rule(edge_rule: EdgeRule | None) -> EdgeRule | None:
    """The rule; raises ConfigError for what is none."""
    if edge_rule is not None and not isinstance(edge_rule, EdgeRule):
        raise ConfigError(f"`edge_rule` must be a rule of flower_bfl.defences, got {edge_rule!r:.80}")
    return edge_rule


def checked_defences(
    defence: Defence | Sequence[Defence] | None, consensus: Consensus, *, sealed: bool
) -> tuple[Replay | None, Deviation | None]:
    """The defences by kind; raises ConfigError unless they can work. `sealed`: blocks are mined."""
    given = defence if isinstance(defence, list | tuple) else [] if defence is None else [defence]
    replays = [each for each in given if isinstance(each, Replay)]
    deviations = [each for each in given if isinstance(each, Deviation)]
    if len(replays) + len(deviations) < len(given) or len(replays) > 1 or len(deviations) > 1:
        raise ConfigError(f"`defence` must be Replay(), Deviation(), or both, got {defence!r:.80}")
    if not replays:
        return None, next(iter(deviations), None)
    if not sealed:
        raise ConfigError(
            "`defence` Replay needs `ledger`, which it replays, and `mining`, without which a model counts "
            "before anybody can vote, got none"
        )
    servers, steps = consensus.edge_servers, consensus.most_steps + 1
    if servers < 3:
        raise ConfigError(
            f"`edge_servers` must be at least 3 with Replay, got {servers}: "
            "of two, each could vote out the other"
        )
    if servers * steps > 2**16:
        raise ConfigError(
            "`edge_servers` times `p2p_rounds` + 1 must be at most 65536 with Replay, which may begin a "
            f"consensus anew for each edge server, got {servers * steps}"
        )
    return replays[0], next(iter(deviations), None)
