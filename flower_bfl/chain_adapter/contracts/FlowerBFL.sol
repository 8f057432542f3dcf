// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title The record of one federated-learning run.
/// @notice Keeps digests and says who may submit what, and when; payloads stay in calldata or in a payload store.
/// Round k is open while `height` is k: data, gradients, consensus states and votes come first, then the leader proposes
/// the global model, then a miner seals it. Until then the operator may begin the round again, and all that was
/// submitted in it no longer counts: a run that was broken off goes on that way. Sealed models form a chain of BFL blocks:
/// hash = SHA-256(previous hash, timestamp, miner, nonce, digest of the model), with `difficulty` leading zero bits.
/// @dev Digests are SHA-256: the precompile computes them, and `sha256sum` checks a payload file by hand.
contract FlowerBFL {
    /// @dev Roles; the operator deploys the contract and registers all others.
    uint8 private constant OPERATOR = 0;
    uint8 private constant DEVICE = 1;
    uint8 private constant SERVER = 2;

    /// @dev Kinds of entries; models go to `propose`, seals to `seal`, all others to `submit` or `relay`.
    uint8 private constant RULES = 0;
    uint8 private constant REPORT = 1;
    uint8 private constant GRADIENT = 2;
    uint8 private constant CONSENSUS = 3;
    uint8 private constant MODEL = 4;
    uint8 private constant VOTE = 5;
    uint8 private constant SEAL = 6;
    uint8 private constant DATA = 7;
    uint8 private constant RESTART = 8;
    uint8 private constant STATE = 9;

    /// @dev Leader rules.
    uint8 private constant ANY = 0;
    uint8 private constant RANDOM = 1;
    uint8 private constant REPUTATION = 2;
    uint8 private constant FIXED = 3;

    struct Account {
        bool registered;
        uint8 role;
        uint32 index;
        uint32 quarantinedUntil; // first round in which it may act again
        uint64 rewards; // blocks sealed
    }

    /// @dev A BFL block; its previous hash is the hash of the round before, zero for round 0.
    struct BFLBlock {
        bytes32 hash;
        bytes32 digest;
        uint64 timestamp;
        uint64 miner; // role in the upper half, index in the lower; 0: nobody mined it
        uint64 nonce;
        uint16 server; // edge server that the miner belongs to
    }

    /// @dev The model that waits for its seal.
    struct Proposal {
        address proposer;
        uint64 timestamp;
        bytes32 digest;
    }

    /// @notice The account that deployed this contract.
    address public immutable operator;
    /// @notice Number of edge servers M.
    uint16 public immutable servers;
    /// @notice Who leads a round: 0 any server, 1 drawn from the last block's hash, 2 by reputation, 3 a fixed one.
    uint8 public immutable leaderRule;
    /// @notice The leader of rule 3.
    uint16 public immutable fixedLeader;
    /// @notice Leading zero bits of a BFL block's hash; 0: a proposal needs no seal.
    uint8 public immutable difficulty;
    /// @notice Rounds for which a server is barred after the one in which it was voted out.
    uint32 public immutable quarantineRounds;
    /// @notice EIP-712 domain of entries that somebody else relays.
    bytes32 public immutable domainSeparator;

    bytes32 private constant ENTRY_TYPE = keccak256("Entry(uint8 kind,uint32 round,uint16 step,bytes32 digest)");

    /// @notice Number of BFL blocks, which is also the round that is open.
    uint32 public height;
    /// @dev How often that round was begun again; beside `height`, so that reading it costs nothing more.
    uint16 private begunAgain;

    /// @notice The model of the open round, if its leader has proposed one.
    Proposal public proposal;

    /// @notice Role, index, quarantine and rewards of an account.
    mapping(address account => Account) public accounts;

    /// @notice The BFL block of a round.
    mapping(uint32 round => BFLBlock) public blocks;

    /// @notice How often a round was begun again.
    mapping(uint32 round => uint16) public restarts;

    /// @notice SHA-256 of a piece of a payload; zero if it was not submitted.
    mapping(address sender => mapping(bytes32 digest => mapping(uint32 index => bytes32))) public pieces;

    mapping(uint256 roleAndIndex => address) private holders;
    mapping(uint256 entry => bytes32) private digests;
    mapping(uint256 roundAndRestarts => mapping(uint16 server => uint16)) private counts;

    /// @dev Servers that were voted out in the open round, and until when each was barred before.
    uint16[] private votedOut;
    mapping(uint16 server => uint32) private barredBefore;

    event Registered(address indexed account, uint8 indexed role, uint32 index);
    event Submitted(uint32 indexed round, address indexed sender, uint8 kind, uint16 step, bytes32 digest);
    event Proposed(uint32 indexed round, address indexed sender, uint16 passed, bytes32 digest, uint64 timestamp);
    event Sealed(uint32 indexed round, address indexed miner, bytes32 hash, uint64 nonce, uint16 server);
    event Quarantined(uint16 indexed server, uint32 indexed round, uint32 until);
    event Piece(address indexed sender, bytes32 indexed digest, uint32 index, bytes32 pieceDigest);

    /// @notice Only the operator may register accounts.
    error NotOperator();
    /// @notice The sender has no role.
    error NotRegistered();
    /// @notice The account has a role already.
    error AlreadyRegistered(address account);
    /// @notice Another account has this role and index.
    error IndexTaken(uint32 index);
    /// @notice `register` needs as many indices as accounts, at least one, and a value they can share equally.
    error UnevenRegistration();
    /// @notice An account does not take its share.
    error FundingFailed(address account);
    /// @notice The rules of the constructor contradict each other.
    error BadRules();
    /// @notice The sender's role (or the role to be registered) does not allow this.
    error WrongRole();
    /// @notice There is no such kind; models go to `propose`, seals to `seal`.
    error WrongKind();
    /// @notice Another round is open.
    error WrongRound(uint32 expected, uint32 got);
    /// @notice The server may not act before round `until`.
    error ServerQuarantined(uint32 until);
    /// @notice The leader rule names another server.
    error NotLeader(uint16 expected, uint32 got);
    /// @notice There is no such edge server, or nobody may vote on it.
    error UnknownServer(uint32 index);
    /// @notice The model builds on another block than the last one.
    error StaleParent(bytes32 expected, bytes32 got);
    /// @notice A BFL block must be later than the one before, whose timestamp is `previous`.
    error StaleTimestamp(uint64 previous, uint64 got);
    /// @notice No model of this round waits for a seal.
    error NothingProposed();
    /// @notice The block's hash has too few leading zero bits with this miner and nonce.
    error BadNonce();
    /// @notice This sender has submitted this already, or the round has its proposal.
    error AlreadySubmitted();
    /// @notice A round is begun again for the first time, then for the second time, and so on.
    error WrongRestart(uint16 expected, uint16 got);
    /// @notice The digest is zero, or not the SHA-256 of the payload in calldata.
    error DigestMismatch();
    /// @notice The signature is not one of a registered account.
    error BadSignature();
    /// @notice The piece before this one is missing.
    error PieceOutOfOrder(uint32 index);

    constructor(uint16 servers_, uint8 leaderRule_, uint16 fixedLeader_, uint8 difficulty_, uint32 quarantineRounds_) {
        if (leaderRule_ > FIXED || (leaderRule_ != ANY && servers_ == 0)) revert BadRules();
        if (leaderRule_ == FIXED && fixedLeader_ >= servers_) revert BadRules();
        if (leaderRule_ == REPUTATION && difficulty_ == 0) revert BadRules();
        operator = msg.sender;
        servers = servers_;
        leaderRule = leaderRule_;
        fixedLeader = fixedLeader_;
        difficulty = difficulty_;
        quarantineRounds = quarantineRounds_;
        domainSeparator = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("FlowerBFL"),
                keccak256("1"),
                block.chainid,
                address(this)
            )
        );
        accounts[msg.sender] = Account(true, OPERATOR, 0, 0, 0);
        holders[0] = msg.sender;
        emit Registered(msg.sender, OPERATOR, 0);
    }

    /// @notice Give accounts a role, and an equal share each of the value sent, so that they can pay for gas.
    /// @param newAccounts accounts without a role
    /// @param role DEVICE or SERVER
    /// @param indices number of each account among those of its role
    function register(address[] calldata newAccounts, uint8 role, uint32[] calldata indices) external payable {
        if (msg.sender != operator) revert NotOperator();
        if (role != DEVICE && role != SERVER) revert WrongRole();
        uint256 count = newAccounts.length;
        if (count == 0 || indices.length != count || msg.value % count != 0) revert UnevenRegistration();
        for (uint256 i = 0; i < count; i++) {
            address account = newAccounts[i];
            uint256 place = (uint256(role) << 32) | indices[i];
            if (role == SERVER && servers != 0 && indices[i] >= servers) revert UnknownServer(indices[i]);
            if (accounts[account].registered) revert AlreadyRegistered(account);
            if (holders[place] != address(0)) revert IndexTaken(indices[i]);
            accounts[account] = Account(true, role, indices[i], 0, 0);
            holders[place] = account;
            emit Registered(account, role, indices[i]);
            (bool taken,) = account.call{value: msg.value / count}("");
            if (!taken) revert FundingFailed(account);
        }
    }

    /// @notice Record the digest of an entry of the open round: once per kind, round, step and sender.
    /// @param kind RULES, REPORT, RESTART and STATE are the operator's, GRADIENT a device's or server's, DATA a
    /// device's, CONSENSUS and VOTE a server's
    /// @param round the open round
    /// @param step consensus step; of a vote, the accused server; of data, the server that they went to; of a restart,
    /// how often the round was begun again with it
    /// @param digest SHA-256 of the payload
    /// @param payload the payload, or nothing if it is kept elsewhere
    function submit(uint8 kind, uint32 round, uint16 step, bytes32 digest, bytes calldata payload) external {
        _submit(msg.sender, kind, round, step, digest, payload);
    }

    /// @notice `submit` in the name of whoever signed the entry (EIP-712), which needs no money for that.
    /// @param signature r, s and v of the signer, 65 bytes
    function relay(
        uint8 kind, uint32 round, uint16 step, bytes32 digest, bytes calldata payload, bytes calldata signature
    ) external {
        if (signature.length != 65) revert BadSignature();
        bytes32 entry = keccak256(abi.encode(ENTRY_TYPE, kind, round, step, digest));
        bytes32 message = keccak256(abi.encodePacked(bytes2(0x1901), domainSeparator, entry));
        address signer =
            ecrecover(message, uint8(signature[64]), bytes32(signature[:32]), bytes32(signature[32:64]));
        if (signer == address(0) || !accounts[signer].registered) revert BadSignature();
        _submit(signer, kind, round, step, digest, payload);
    }

    /// @notice Propose the open round's global model; round 0 is the operator's, all others the leader's.
    /// @param passed how many servers after the one that the rule names cannot lead; the sender is the next one
    /// @param parent hash of the last BFL block
    /// @param timestamp seconds since 1970, later than the previous block's
    function propose(
        uint32 round, uint16 passed, bytes32 parent, uint64 timestamp, bytes32 digest, bytes calldata payload
    ) external {
        Account storage sender = accounts[msg.sender];
        if (!sender.registered) revert NotRegistered();
        if (sender.role != (round == 0 ? OPERATOR : SERVER)) revert WrongRole();
        if (round != height) revert WrongRound(height, round);
        if (round < sender.quarantinedUntil) revert ServerQuarantined(sender.quarantinedUntil);
        if (parent != head()) revert StaleParent(head(), parent);
        if (round > 0 && leaderRule != ANY && leader(passed) != sender.index) {
            revert NotLeader(leader(passed), sender.index);
        }
        if (_waiting()) revert AlreadySubmitted();
        if (round > 0 && timestamp <= blocks[round - 1].timestamp) {
            revert StaleTimestamp(blocks[round - 1].timestamp, timestamp);
        }
        _check(digest, payload);
        emit Proposed(round, msg.sender, passed, digest, timestamp);
        if (round > 0 && difficulty > 0) {
            proposal = Proposal(msg.sender, timestamp, digest);
        } else {
            _extend(parent, digest, timestamp, 0, 0, 0);
        }
    }

    /// @notice Seal the open round's proposal with a proof of work, for a reward.
    /// @param server edge server that the miner belongs to
    /// @param nonce gives the block's hash its leading zeros; it holds for this model and this miner only
    function seal(uint32 round, uint16 server, uint64 nonce) external {
        Account storage sender = accounts[msg.sender];
        if (!sender.registered) revert NotRegistered();
        if (sender.role == OPERATOR) revert WrongRole();
        if (round != height) revert WrongRound(height, round);
        if (round < sender.quarantinedUntil) revert ServerQuarantined(sender.quarantinedUntil);
        if (!_waiting()) revert NothingProposed();
        if (servers != 0 && server >= servers) revert UnknownServer(server);
        uint64 miner = (uint64(sender.role) << 32) | sender.index;
        bytes32 digest = proposal.digest;
        uint64 timestamp = proposal.timestamp;
        delete proposal;
        sender.rewards += 1;
        _extend(head(), digest, timestamp, miner, nonce, server);
    }

    /// @notice Record the digest of one piece of a payload that is too large for one transaction.
    /// @param digest SHA-256 of the whole payload, for the later `submit`, `relay` or `propose`
    /// @param index number of the piece, from 0, in order
    function piece(bytes32 digest, uint32 index, bytes calldata data) external {
        if (!accounts[msg.sender].registered) revert NotRegistered();
        mapping(uint32 => bytes32) storage known = pieces[msg.sender][digest];
        if (index > 0 && known[index - 1] == 0) revert PieceOutOfOrder(index);
        if (known[index] != 0) revert AlreadySubmitted();
        known[index] = sha256(data);
        emit Piece(msg.sender, digest, index, known[index]);
    }

    /// @notice Hash of the last BFL block; zero before the first.
    function head() public view returns (bytes32) {
        return height == 0 ? bytes32(0) : blocks[height - 1].hash;
    }

    /// @notice The open round's leader once `passed` servers have been passed over, of rules 1 to 3.
    function leader(uint16 passed) public view returns (uint16) {
        uint256 first;
        if (leaderRule == FIXED) {
            first = fixedLeader;
        } else if (leaderRule == REPUTATION && height > 1) {
            first = blocks[height - 1].server;
        } else {
            first = uint256(sha256(abi.encodePacked(head(), uint64(height)))) % servers;
        }
        return uint16((first + passed) % servers);
    }

    /// @notice Votes in a round against a server.
    function votes(uint32 round, uint16 server) external view returns (uint16) {
        return counts[_try(round, restarts[round])][server];
    }

    /// @notice Digest of an entry that went to `submit` or `relay` and counts; zero if there is none.
    function digestOf(uint8 kind, uint32 round, uint16 step, address sender) external view returns (bytes32) {
        return digests[_entry(kind, _try(round, restarts[round]), step, sender)];
    }

    /// @notice The account with a role and index; zero if there is none.
    function holderOf(uint8 role, uint32 index) external view returns (address) {
        return holders[(uint256(role) << 32) | index];
    }

    function _submit(
        address from, uint8 kind, uint32 round, uint16 step, bytes32 digest, bytes calldata payload
    ) private {
        Account storage sender = accounts[from];
        if (!sender.registered) revert NotRegistered();
        if (kind > STATE || kind == MODEL || kind == SEAL) revert WrongKind();
        if (!_allowed(kind, sender.role)) revert WrongRole();
        if (round != height) revert WrongRound(height, round);
        if (round < sender.quarantinedUntil) revert ServerQuarantined(sender.quarantinedUntil);
        if (kind == RESTART) _restart(round, step);
        uint256 entry = _entry(kind, _try(round, begunAgain), step, from);
        if (digests[entry] != 0) revert AlreadySubmitted();
        _check(digest, payload);
        digests[entry] = digest;
        emit Submitted(round, from, kind, step, digest);
        if (kind == VOTE) _vote(round, step, sender.index);
    }

    /// @dev More than half of the other servers bar one for the rest of this round and `quarantineRounds` more.
    function _vote(uint32 round, uint16 accused, uint32 voter) private {
        if (accused >= servers || accused == voter) revert UnknownServer(accused);
        address account = holders[(uint256(SERVER) << 32) | accused];
        if (account == address(0)) revert UnknownServer(accused);
        uint16 count = ++counts[_try(round, begunAgain)][accused];
        if (2 * uint256(count) > servers - 1) {
            uint32 until = round + quarantineRounds + 1;
            if (accounts[account].quarantinedUntil != until) {
                votedOut.push(accused);
                barredBefore[accused] = accounts[account].quarantinedUntil;
                accounts[account].quarantinedUntil = until;
            }
            emit Quarantined(accused, round, until);
        }
    }

    /// @dev Forgets what was submitted in the open round, its proposal, its votes and what came of them.
    function _restart(uint32 round, uint16 number) private {
        if (number != begunAgain + 1) revert WrongRestart(begunAgain + 1, number);
        restarts[round] = begunAgain = number;
        delete proposal;
        for (uint256 i = 0; i < votedOut.length; i++) {
            address account = holders[(uint256(SERVER) << 32) | votedOut[i]];
            accounts[account].quarantinedUntil = barredBefore[votedOut[i]];
        }
        delete votedOut;
    }

    /// @dev Whether a model waits for its seal; one whose proposer is voted out does not.
    function _waiting() private view returns (bool) {
        address proposer = proposal.proposer;
        return proposer != address(0) && accounts[proposer].quarantinedUntil <= height;
    }

    function _extend(bytes32 parent, bytes32 digest, uint64 timestamp, uint64 miner, uint64 nonce, uint16 server)
        private
    {
        bytes32 hash = sha256(abi.encodePacked(parent, timestamp, miner, nonce, digest));
        if (miner != 0 && uint256(hash) >> (256 - difficulty) != 0) revert BadNonce();
        blocks[height] = BFLBlock(hash, digest, timestamp, miner, nonce, server);
        emit Sealed(height, msg.sender, hash, nonce, server);
        height += 1;
        begunAgain = 0;
        if (votedOut.length > 0) delete votedOut;
    }

    function _allowed(uint8 kind, uint8 role) private pure returns (bool) {
        if (kind == GRADIENT) return role != OPERATOR;
        if (kind == DATA) return role == DEVICE;
        return role == (kind == CONSENSUS || kind == VOTE ? SERVER : OPERATOR);
    }

    function _check(bytes32 digest, bytes calldata payload) private pure {
        if (digest == 0 || (payload.length > 0 && sha256(payload) != digest)) revert DigestMismatch();
    }

    /// @dev All of it fits into one word, so that a lookup hashes once. Rules are given once, whatever the step says.
    function _entry(uint8 kind, uint256 round, uint16 step, address sender) private pure returns (uint256) {
        if (kind == RULES) return uint160(sender);
        return (round << 184) | (uint256(kind) << 176) | (uint256(step) << 160) | uint160(sender);
    }

    /// @dev A round, and how often it was begun again.
    function _try(uint32 round, uint16 again) private pure returns (uint256) {
        return (uint256(round) << 16) | again;
    }
}
