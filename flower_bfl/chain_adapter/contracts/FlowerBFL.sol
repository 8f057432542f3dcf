// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title The record of one federated-learning run.
/// @notice Keeps digests and says who may submit what; payloads stay in calldata or in a payload store, never here.
/// The global models form a chain of BFL blocks: (previous hash, timestamp, nonce, data hash).
/// @dev Digests are SHA-256: the precompile computes them, and `sha256sum` checks a payload file by hand.
contract FlowerBFL {
    /// @dev Roles; the operator deploys the contract and registers all others.
    uint8 private constant OPERATOR = 0;
    uint8 private constant DEVICE = 1;
    uint8 private constant SERVER = 2;

    /// @dev Kinds of entries; `publish` takes the models (kind 4).
    uint8 private constant RULES = 0;
    uint8 private constant REPORT = 1;
    uint8 private constant GRADIENT = 2;
    uint8 private constant CONSENSUS = 3;

    struct Account {
        bool registered;
        uint8 role;
        uint32 index;
    }

    /// @dev A BFL block; its previous hash is the hash of the round before, zero for round 0.
    struct BFLBlock {
        bytes32 hash;
        bytes32 digest;
        uint64 timestamp;
        uint64 nonce;
    }

    /// @notice The account that deployed this contract.
    address public immutable operator;

    /// @notice Number of BFL blocks, which is also the round that `publish` takes next.
    uint32 public height;

    /// @notice Role and index of an account.
    mapping(address account => Account) public accounts;

    /// @notice The BFL block of a round.
    mapping(uint32 round => BFLBlock) public blocks;

    /// @notice SHA-256 of a piece of a payload; zero if it was not submitted.
    mapping(address sender => mapping(bytes32 digest => mapping(uint32 index => bytes32))) public pieces;

    mapping(uint256 roleAndIndex => address) private holders;
    mapping(uint256 entry => bytes32) private digests;

    event Registered(address indexed account, uint8 indexed role, uint32 index);
    event Submitted(uint32 indexed round, address indexed sender, uint8 kind, uint16 step, bytes32 digest);
    event Published(
        uint32 indexed round, address indexed sender, bytes32 hash, bytes32 digest, uint64 timestamp, uint64 nonce
    );
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
    /// @notice The sender's role (or the role to be registered) does not allow this.
    error WrongRole();
    /// @notice There is no such kind; models go to `publish`.
    error WrongKind();
    /// @notice A model belongs to the round after the last model's.
    error WrongRound(uint32 expected, uint32 got);
    /// @notice A BFL block must be later than the one before, whose timestamp is `previous`.
    error StaleTimestamp(uint64 previous, uint64 got);
    /// @notice This sender has submitted this already.
    error AlreadySubmitted();
    /// @notice The digest is zero, or not the SHA-256 of the payload in calldata.
    error DigestMismatch();
    /// @notice The piece before this one is missing.
    error PieceOutOfOrder(uint32 index);

    constructor() {
        operator = msg.sender;
        accounts[msg.sender] = Account(true, OPERATOR, 0);
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
            if (accounts[account].registered) revert AlreadyRegistered(account);
            if (holders[place] != address(0)) revert IndexTaken(indices[i]);
            accounts[account] = Account(true, role, indices[i]);
            holders[place] = account;
            emit Registered(account, role, indices[i]);
            (bool taken,) = account.call{value: msg.value / count}("");
            if (!taken) revert FundingFailed(account);
        }
    }

    /// @notice Record the digest of an entry that is not a model: once per kind, round, step and sender.
    /// @param kind RULES and REPORT are the operator's, GRADIENT a device's or server's, CONSENSUS a server's
    /// @param round learning round, 0 before the first
    /// @param step consensus step
    /// @param digest SHA-256 of the payload
    /// @param payload the payload, or nothing if it is kept elsewhere
    function submit(uint8 kind, uint32 round, uint16 step, bytes32 digest, bytes calldata payload) external {
        Account storage sender = accounts[msg.sender];
        if (!sender.registered) revert NotRegistered();
        if (kind > CONSENSUS) revert WrongKind();
        if (!_allowed(kind, sender.role)) revert WrongRole();
        uint256 entry = _entry(kind, round, step, msg.sender);
        if (digests[entry] != 0) revert AlreadySubmitted();
        _check(digest, payload);
        digests[entry] = digest;
        emit Submitted(round, msg.sender, kind, step, digest);
    }

    /// @notice Record a global model and extend the chain of BFL blocks; round 0 is the operator's, all others a server's.
    /// @param timestamp seconds since 1970, later than the previous block's
    /// @param nonce free in this version
    function publish(uint32 round, uint64 timestamp, uint64 nonce, bytes32 digest, bytes calldata payload) external {
        Account storage sender = accounts[msg.sender];
        if (!sender.registered) revert NotRegistered();
        if (sender.role != (round == 0 ? OPERATOR : SERVER)) revert WrongRole();
        if (round != height) revert WrongRound(height, round);
        bytes32 previous = head();
        if (round > 0 && timestamp <= blocks[round - 1].timestamp) {
            revert StaleTimestamp(blocks[round - 1].timestamp, timestamp);
        }
        _check(digest, payload);
        bytes32 hash = sha256(abi.encodePacked(previous, timestamp, nonce, digest));
        blocks[round] = BFLBlock(hash, digest, timestamp, nonce);
        height = round + 1;
        emit Published(round, msg.sender, hash, digest, timestamp, nonce);
    }

    /// @notice Record the digest of one piece of a payload that is too large for one transaction.
    /// @param digest SHA-256 of the whole payload, for the later `submit` or `publish`
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

    /// @notice Digest of an entry that is not a model; zero if there is none.
    function digestOf(uint8 kind, uint32 round, uint16 step, address sender) external view returns (bytes32) {
        return digests[_entry(kind, round, step, sender)];
    }

    /// @notice The account with a role and index; zero if there is none.
    function holderOf(uint8 role, uint32 index) external view returns (address) {
        return holders[(uint256(role) << 32) | index];
    }

    function _allowed(uint8 kind, uint8 role) private pure returns (bool) {
        if (kind == GRADIENT) return role != OPERATOR;
        return role == (kind == CONSENSUS ? SERVER : OPERATOR);
    }

    function _check(bytes32 digest, bytes calldata payload) private pure {
        if (digest == 0 || (payload.length > 0 && sha256(payload) != digest)) revert DigestMismatch();
    }

    /// @dev All four fit into one word, so that a lookup hashes once. Rules are given once, whatever round and step say.
    function _entry(uint8 kind, uint32 round, uint16 step, address sender) private pure returns (uint256) {
        if (kind == RULES) return uint160(sender);
        return (uint256(kind) << 208) | (uint256(round) << 176) | (uint256(step) << 160) | uint160(sender);
    }
}
